"""Contact sheets of datasets: every crop that training will see, drawn before anything is encoded."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from PIL import Image

from services.encoder.datasets import Datasets
from services.encoder.images.contact_sheet import thumbnail
from services.encoder.images.render import ContactSheets, samples_a_sheet
from services.encoder.models import EncoderModels
from services.encoder.records import EncodingOptions
from services.encoder.unread import unread
from tests.services.encoder.conftest import OPTIONS, AddSample, Desk, noise_png, png


@pytest.fixture
def sheets(datasets: Datasets, encoder_models: EncoderModels) -> Iterator[ContactSheets]:
    """What draws them."""
    with ThreadPoolExecutor(2) as executor:
        yield ContactSheets(datasets, executor, unread=partial(unread, encoder_models), max_image_pixels=10_000)


def render(sheets: ContactSheets, desk: Desk, options: EncodingOptions = OPTIONS) -> Image.Image:
    """The sheet of all samples."""
    records = list(desk.datasets.samples(desk.tenant, desk.dataset_id))
    stored = sheets.render(desk.tenant, desk.dataset_id, records, options, title="pictures")
    assert stored.key.startswith(f"{desk.tenant}/datasets/{desk.dataset_id}/contact_sheets/")
    return Image.open(io.BytesIO(desk.datasets.store.get(stored.key, digest=stored.digest)))


def holds(sheet: Image.Image, picture: Image.Image) -> bool:
    """Whether the picture stands on the sheet, pixel by pixel."""
    shown = thumbnail(picture).tobytes()[: 3 * thumbnail(picture).width]
    return shown in sheet.convert("RGB").tobytes()


def test_sheet_shows_the_pictures_themselves(sheets: ContactSheets, desk: Desk, add_sample: AddSample) -> None:
    add_sample("a", data=noise_png(1))
    picture = Image.open(io.BytesIO(noise_png(1)))
    assert holds(render(sheets, desk), picture)
    assert not holds(render(sheets, desk), Image.open(io.BytesIO(noise_png(2))))


def test_mirrored_variant_is_shown_too(sheets: ContactSheets, desk: Desk, add_sample: AddSample) -> None:
    add_sample("a", data=noise_png(1))
    mirrored = Image.open(io.BytesIO(noise_png(1))).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert not holds(render(sheets, desk), mirrored)
    assert holds(render(sheets, desk, OPTIONS.model_copy(update={"flip": True})), mirrored)


def test_bad_and_lost_samples_have_their_place(sheets: ContactSheets, desk: Desk, add_sample: AddSample) -> None:
    add_sample("good")
    narrow = render(sheets, desk).width
    add_sample("text", data=b"no image")
    record = add_sample("lost", seed=3)
    desk.datasets.store.delete(f"{desk.tenant}/datasets/{desk.dataset_id}/originals/{record.content_digest}")
    assert render(sheets, desk).width > 2 * narrow


def test_caption_that_is_not_read_to_its_end_is_marked(
    sheets: ContactSheets, desk: Desk, add_sample: AddSample
) -> None:
    def red_pixels() -> int:
        return int((np.asarray(render(sheets, desk).convert("RGB")) == (0xB3, 0x13, 0x1B)).all(axis=-1).sum())

    white = png(Image.new("RGB", (64, 64), "white"))
    add_sample("a", "apple " * 5, data=white)
    assert red_pixels() == 0
    add_sample("a", "apple " * 100, data=white)
    assert red_pixels() > 20


def test_masked_part_is_marked(sheets: ContactSheets, desk: Desk, add_sample: AddSample) -> None:
    add_sample("a", data=png(Image.new("RGBA", (64, 64), (200, 0, 0, 0))))
    plain = render(sheets, desk).tobytes()
    assert render(sheets, desk, OPTIONS.model_copy(update={"alpha_policy": "MASK"})).tobytes() != plain


def test_sheet_stays_of_a_size_that_can_be_drawn() -> None:
    many = OPTIONS.model_copy(update={"random_crops": 8, "flip": True})
    assert (samples_a_sheet(100, OPTIONS), samples_a_sheet(100, many), samples_a_sheet(3, many)) == (100, 25, 3)
