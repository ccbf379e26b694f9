"""Memory while encoding, in a process of its own."""

from __future__ import annotations

from benchmarks.encoder_memory import Case, encoded_elsewhere, made
from services.stack import Stack

SIDE_PX = 480
DECODED_MB = SIDE_PX * SIDE_PX * 4 / 1e6  # as Pillow keeps it


def test_memory_does_not_grow_with_the_number_of_images(store_stack: Stack) -> None:
    settings = store_stack.store_settings
    few, many = (made(settings, Case(samples=count, width_px=SIDE_PX, height_px=SIDE_PX)) for count in (20, 120))
    of_few, of_many = encoded_elsewhere(settings, [few, many])
    assert (of_few["samples"], of_many["samples"]) == (20, 120)
    assert of_many["peak_mb"] - of_few["peak_mb"] < 15 * DECODED_MB
