"""What a run measured, kept small enough to hold in memory: the metrics table and the report are made of it."""

from __future__ import annotations

import csv
import io
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from services.trainer.best import best_step
from services.trainer.jobs import (
    Event,
    JobWarning,
    PreviewRendered,
    StepMetrics,
    StepsCompleted,
    ValidationCompleted,
)

COLUMNS = (
    "step",
    "loss",
    "learning_rate",
    "gradient_norm",
    "duration_s",
    "skipped",
    "held_out_loss",
    "held_out_loss_zero",
)
LOSSLESS_PX = 128  # a picture up to this size stays the PNG it is: flux-tiny's would only blur
MOST_PX = 512  # of the longer side of a kept picture; the full one is in the store
WEBP_QUALITY = 85
MOST_PREVIEW_STEPS = 24  # of which pictures are kept; 16 prompts of 512 px are then some 15 MB


class Activity(StrEnum):
    """What the time of a job goes into, besides its steps."""

    READING = "reading the dataset"
    VALIDATING = "measuring the held-out loss"
    PREVIEWING = "making previews"
    PUBLISHING = "publishing files"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An encoded picture, at most `MOST_PX` on its longer side."""

    data: bytes
    media_type: str
    width_px: int
    height_px: int


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A picture made after `step`; 0 is before the first: the base, or with a warm start the file it began with."""

    step: int
    prompt: str
    picture: Picture
    artifact_name: str = ""
    """The file with the picture in full size."""


class History:
    """Takes the events of a run as they come. 100,000 steps are 5 MB.

    Steps that come again, as after a resume from a checkpoint, take the place of those noted before.
    """

    def __init__(self) -> None:
        self.total_steps = 0
        self.held_out: dict[int, float] = {}
        self.held_out_zero: float | None = None  # the loss of predicting no velocity
        self.warnings: list[JobWarning] = []
        self.seconds: dict[Activity, float] = {}
        self.memory_peak_bytes = 0
        self._previews: dict[tuple[int, str], Preview] = {}
        self._steps = array("q")
        self._skipped = array("b")
        self._metrics = array("d")  # loss, learning rate, gradient norm, duration; then those of the next step

    def add(self, event: Event, *, png: bytes | None = None) -> None:
        """Note an event; `png` is the picture of a `PreviewRendered`, which without it is passed over."""
        if isinstance(event, StepsCompleted):
            self.total_steps = event.total_steps
            for step in event.steps:
                self._add_step(step)
        elif isinstance(event, ValidationCompleted):
            self.held_out[event.step] = event.loss
            if event.held_out_loss_zero is not None:
                self.held_out_zero = event.held_out_loss_zero
        elif isinstance(event, JobWarning):
            if event not in self.warnings:
                self.warnings.append(event)
        elif isinstance(event, PreviewRendered) and png is not None:
            self._previews[event.step, event.prompt] = Preview(
                step=event.step,
                prompt=event.prompt,
                picture=small_picture(png),
                artifact_name=event.image.artifact_name,
            )
            self._thin_previews()

    @contextmanager
    def timed(self, activity: Activity) -> Iterator[None]:
        """Count the time that the block takes, also when it raises."""
        begin_s = time.monotonic()
        try:
            yield
        finally:
            self.seconds[activity] = self.seconds.get(activity, 0.0) + time.monotonic() - begin_s

    def note_memory(self, peak_bytes: int) -> None:
        """Note a peak of the device's memory; the highest counts."""
        self.memory_peak_bytes = max(self.memory_peak_bytes, peak_bytes)

    @property
    def steps(self) -> NDArray[np.int64]:
        """Numbers of the steps done, ascending."""
        return np.array(self._steps, dtype=np.int64)

    @property
    def skipped(self) -> NDArray[np.bool_]:
        """For each of `steps`, whether it changed nothing."""
        return np.array(self._skipped, dtype=np.bool_)

    @property
    def losses(self) -> NDArray[np.float64]:
        """For each of `steps`, its loss; may hold numbers that are not finite."""
        return self._column(0)

    @property
    def learning_rates(self) -> NDArray[np.float64]:
        """For each of `steps`, its learning rate."""
        return self._column(1)

    @property
    def gradient_norms(self) -> NDArray[np.float64]:
        """For each of `steps`, the norm of its gradient before clipping; may hold numbers that are not finite."""
        return self._column(2)

    @property
    def durations_s(self) -> NDArray[np.float64]:
        """For each of `steps`, how long it took."""
        return self._column(3)

    @property
    def best_step(self) -> int | None:
        """The best step by the held-out loss (`best.py`), of equals the first; None when it was not measured."""
        return best_step(self.held_out)

    @property
    def previews(self) -> tuple[Preview, ...]:
        """Pictures of at most `MOST_PREVIEW_STEPS` steps: the first, the last, the nearest to the best, some more."""
        return tuple(sorted(self._previews.values(), key=lambda preview: preview.step))

    def metrics_csv(self) -> bytes:
        """One row a step (RFC 4180); what was not measured is empty. Step 0 is before the first."""
        text = io.StringIO(newline="")
        rows = csv.writer(text)
        rows.writerow(COLUMNS)
        if 0 in self.held_out:
            rows.writerow([0, *[""] * 5, *self._held_out_cells(0)])
        for at, step in enumerate(self._steps):
            measured = [_number(value) for value in self._metrics[4 * at : 4 * at + 4]]
            skipped = "true" if self._skipped[at] else "false"
            rows.writerow([step, *measured, skipped, *self._held_out_cells(step)])
        return text.getvalue().encode()

    def _held_out_cells(self, step: int) -> tuple[str, str]:
        measured = step in self.held_out
        return _number(self.held_out.get(step)), _number(self.held_out_zero if measured else None)

    def _add_step(self, step: StepMetrics) -> None:
        while self._steps and self._steps[-1] >= step.step:
            self._steps.pop()
            self._skipped.pop()
            del self._metrics[-4:]
        self._steps.append(step.step)
        self._skipped.append(step.skipped)
        self._metrics.extend((step.loss, step.learning_rate, step.gradient_norm, step.duration_s))

    def _column(self, at: int) -> NDArray[np.float64]:
        return np.array(self._metrics[at::4], dtype=np.float64)

    def _thin_previews(self) -> None:
        steps = sorted({step for step, _ in self._previews})
        if len(steps) > MOST_PREVIEW_STEPS:
            dropped = set(steps[1:-1:2])
            if self.best_step is not None:
                dropped.discard(nearest_step(steps, self.best_step))
            self._previews = {key: kept for key, kept in self._previews.items() if key[0] not in dropped}


def nearest_step(steps: Sequence[int], step: int) -> int:
    """The one of `steps` that is nearest to `step`, of equals the earlier."""
    return min(steps, key=lambda found: (abs(found - step), found))


def small_picture(png: bytes, most_px: int = MOST_PX) -> Picture:
    """The picture scaled down to `most_px` on its longer side as WebP; a tiny one as it is."""
    with Image.open(io.BytesIO(png)) as image:
        if max(image.size) <= LOSSLESS_PX or (image.format == "WEBP" and max(image.size) <= most_px):
            media_type = f"image/{(image.format or 'png').lower()}"
            return Picture(data=png, media_type=media_type, width_px=image.width, height_px=image.height)
        small = image.convert("RGB")
    small.thumbnail((most_px, most_px))
    data = io.BytesIO()
    small.save(data, "WEBP", quality=WEBP_QUALITY)
    return Picture(data=data.getvalue(), media_type="image/webp", width_px=small.width, height_px=small.height)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.9g}"  # nine digits tell any two numbers of 32 bits apart
