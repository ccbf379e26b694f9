"""What a run measured: the table that anyone can open, and pictures that stay small."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import time

import numpy as np
import pytest
from PIL import Image

from services.trainer.jobs import (
    Artifact,
    JobWarning,
    PreviewRendered,
    StepMetrics,
    StepsCompleted,
    ValidationCompleted,
)
from services.trainer.results.history import COLUMNS, MOST_PREVIEW_STEPS, MOST_PX, Activity, History, small_picture

ARTIFACT = Artifact(artifact_name="preview.png", uri="s3://b/k", size_bytes=1, content_digest="0")


def steps_of(*losses: float, first: int = 1, total_steps: int = 100) -> StepsCompleted:
    """Steps in a row with these losses; those that are not finite were skipped."""
    steps = tuple(
        StepMetrics(
            step=number,
            loss=loss,
            learning_rate=1e-4,
            gradient_norm=2 * loss,
            duration_s=0.5,
            skipped=not math.isfinite(loss),
        )
        for number, loss in enumerate(losses, start=first)
    )
    return StepsCompleted(steps=steps, total_steps=total_steps)


def preview_of(step: int, prompt: str = "red apple", *, number: int = 0) -> PreviewRendered:
    """A preview after a step, of the prompt with this number."""
    image = ARTIFACT.model_copy(update={"artifact_name": f"previews/{step:06}-{number}.png"})
    return PreviewRendered(step=step, prompt=prompt, seed=0, image=image)


def png_of(side_px: int, color: str = "red") -> bytes:
    """A square picture with some noise, as pictures have."""
    pixels = np.random.default_rng(0).integers(0, 255, (side_px, side_px, 3), dtype=np.uint8)
    noisy = Image.blend(Image.new("RGB", (side_px, side_px), color), Image.fromarray(pixels), 0.2)
    data = io.BytesIO()
    noisy.save(data, "PNG")
    return data.getvalue()


def table_of(history: History) -> list[dict[str, str]]:
    """The rows of metrics.csv."""
    return list(csv.DictReader(io.StringIO(history.metrics_csv().decode(), newline="")))


def test_table_has_a_row_for_the_base_and_one_a_step() -> None:
    history = History()
    measured = [ValidationCompleted(step=at, loss=loss, held_out_loss_zero=6.5) for at, loss in ((0, 5.5), (2, 4.5))]
    for event in (measured[0], steps_of(3.25, 2.5), measured[1]):
        history.add(event)
    rows = table_of(history)
    assert [row["step"] for row in rows] == ["0", "1", "2"]
    assert [row["loss"] for row in rows] == ["", "3.25", "2.5"]
    assert [row["gradient_norm"] for row in rows] == ["", "6.5", "5"]
    assert [row["held_out_loss"] for row in rows] == ["5.5", "", "4.5"]
    assert [row["held_out_loss_zero"] for row in rows] == ["6.5", "", "6.5"]
    assert rows[2] | {"learning_rate": "0.0001", "duration_s": "0.5"} == rows[2]


def test_table_says_which_steps_were_skipped() -> None:
    history = History()
    history.add(steps_of(1.0, math.nan, math.inf))
    assert [(row["loss"], row["skipped"]) for row in table_of(history)] == [
        ("1", "false"),
        ("nan", "true"),
        ("inf", "true"),
    ]


def test_table_is_as_rfc_4180_has_it() -> None:
    history = History()
    history.add(steps_of(1.0))
    assert history.metrics_csv() == (",".join(COLUMNS) + "\r\n1,1,0.0001,2,0.5,false,,\r\n").encode()


def test_numbers_of_the_table_lose_nothing() -> None:
    history = History()
    loss = float(np.float32(0.1234567891))
    history.add(steps_of(loss))
    assert np.float32(table_of(history)[0]["loss"]) == np.float32(loss)


def test_steps_done_again_after_a_resume_take_the_place_of_the_first() -> None:
    history = History()
    history.add(steps_of(1.0, 2.0, 3.0, 4.0))
    history.add(steps_of(7.0, 8.0, first=3))
    assert history.steps.tolist() == [1, 2, 3, 4]
    assert history.losses.tolist() == [1.0, 2.0, 7.0, 8.0]
    assert history.skipped.tolist() == [False] * 4


def test_a_column_is_not_changed_by_what_comes_later() -> None:
    history = History()
    history.add(steps_of(1.0))
    losses = history.losses
    history.add(steps_of(2.0, first=2))
    assert losses.tolist() == [1.0]


def test_a_tiny_picture_is_kept_as_it_is() -> None:
    png = png_of(64)
    picture = small_picture(png)
    assert (picture.data, picture.media_type, picture.width_px) == (png, "image/png", 64)


def test_a_large_picture_is_scaled_down() -> None:
    png = png_of(1024)
    picture = small_picture(png)
    assert (picture.width_px, picture.height_px, picture.media_type) == (MOST_PX, MOST_PX, "image/webp")
    assert len(picture.data) < len(png) / 10
    with Image.open(io.BytesIO(picture.data)) as image:
        assert image.size == (MOST_PX, MOST_PX)
        assert image.resize((1, 1)).getpixel((0, 0)) == pytest.approx((229, 25, 25), abs=12)


def test_previews_of_many_steps_are_thinned_but_for_the_first_and_the_last() -> None:
    history = History()
    png = png_of(16)
    for step in range(0, 1000, 10):
        history.add(preview_of(step), png=png)
    kept = [preview.step for preview in history.previews]
    assert len(kept) <= MOST_PREVIEW_STEPS
    assert (kept[0], kept[-1]) == (0, 990)
    assert kept == sorted(kept)


def test_the_picture_nearest_to_the_best_step_is_never_thinned() -> None:
    history = History()
    png = png_of(16)
    history.add(ValidationCompleted(step=17, loss=1.0))
    history.add(ValidationCompleted(step=18, loss=math.nan))
    for step in range(0, 1000, 5):
        history.add(preview_of(step), png=png)
    assert 15 in [preview.step for preview in history.previews]
    assert len(history.previews) <= MOST_PREVIEW_STEPS


def test_the_best_step_is_the_first_of_the_lowest() -> None:
    history = History()
    assert history.best_step is None
    for step, loss in ((0, 3.0), (10, 2.0), (20, math.nan), (30, 2.0)):
        history.add(ValidationCompleted(step=step, loss=loss))
    assert history.best_step == 10


def test_a_preview_without_its_picture_is_passed_over() -> None:
    history = History()
    history.add(preview_of(1))
    assert history.previews == ()


def test_a_warning_told_twice_is_one() -> None:
    history = History()
    for reason in ("SHORT_RUN", "SHORT_RUN", "OTHER"):
        history.add(JobWarning(reason=reason, message="m"))
    assert [warning.reason for warning in history.warnings] == ["SHORT_RUN", "OTHER"]


def test_time_counts_also_when_something_is_raised() -> None:
    history, began_s = History(), time.monotonic()
    for seconds in (0.02, -1.0):  # the second cannot be slept
        with contextlib.suppress(ValueError), history.timed(Activity.PUBLISHING):
            time.sleep(0.02)
            time.sleep(seconds)
    assert 0.06 <= history.seconds[Activity.PUBLISHING] <= time.monotonic() - began_s


def test_the_highest_peak_of_memory_counts() -> None:
    history = History()
    for peak_bytes in (5, 9, 7):
        history.note_memory(peak_bytes)
    assert history.memory_peak_bytes == 9
