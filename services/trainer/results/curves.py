"""Curves for the report: any number of steps becomes a few hundred points of SVG, with ticks at round values.

Coordinates run from 0 to 100 in both directions, x to the right and y down; the page stretches them to its width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.trainer.results.smoothing import Floats, centered_means, mean_width, without_spikes

MOST_COLUMNS = 400  # about one for every two pixels of a wide screen
MOST_POINTS = 200  # of a line through measurements
MOST_DOTS = 40  # more would hide the line
HEAD, MIDDLE, FOOT = 12.0, 50.0, 85.0
LEAST_SHARE = 0.25  # of the height that a line keeps for itself: a yardstick further off would press it flat
YARDSTICK = "predicting nothing"

Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A round value on an axis, and where it lies (0 to 100)."""

    at: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A point that is shown for itself."""

    x: float
    y: float
    title: str
    best: bool = False


@dataclass(frozen=True, kw_only=True)
class Label:
    """A few words beside a place of the drawing, on the side of it that has room."""

    x: float
    y: float
    text: str
    below: bool = False

    @property
    def to_the_left(self) -> bool:
        """Whether the words end at the place instead of beginning there."""
        return self.x > MIDDLE


@dataclass(frozen=True, kw_only=True)
class Level:
    """A level line across the drawing; a value beyond the axis lies on its edge, which its label says."""

    y: float
    title: str


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One drawing: the range that single steps reach, a line through them, dots, and marks at the foot."""

    title: str
    note: str
    band: str = ""
    """Path of the area between the lowest and the highest value; empty where there is no spread."""
    line: str = ""
    """Path of the line."""
    dots: tuple[Dot, ...] = ()
    labels: tuple[Label, ...] = ()
    level: Level | None = None
    """What the line is held against."""
    marks: tuple[float, ...] = ()
    """Where steps were skipped."""
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    summary: str
    """What the drawing shows, in words."""


def curve_of_steps(
    title: str, steps: NDArray[np.int64], values: Floats, *, last_step: int, skipped: Bools | None = None
) -> Curve | None:
    """Draw a value that each step has; None when there is no finite one.

    With `skipped` it is a noisy one: drawn as its range and a centered mean, and the steps skipped are marked. A run
    too short for a mean is a line through its steps, a single step a dot.
    """
    finite = np.isfinite(values)
    if not finite.any():
        return None
    steps_done, values = steps[finite], values[finite]
    # What lies beyond the drawing counts as its top, for the mean too.
    shown = without_spikes(values)
    width = mean_width(len(shown)) if skipped is not None else 1
    middle = slice(width // 2, len(shown) - width // 2)
    line_steps, line = _by_column(steps_done[middle], centered_means(shown, width), last_step)
    band_steps, low = _by_column(steps_done, values, last_step, np.min)
    _, high = _by_column(steps_done, values, last_step, np.max)
    x, band_x = line_steps * 100 / last_step, band_steps * 100 / last_step
    axis = Axis.over(float(values.min()), float(shown.max()))
    y = axis.places(line)
    missing = steps[skipped] if skipped is not None else steps[:0]
    only = Dot(x=round(float(x[0]), 2), y=round(float(y[0]), 2), title=f"step {steps_done[0]}: {line[0]:.4g}")
    mean = f", centered mean of {width:,} steps," if width > 1 else ""
    return Curve(
        title=title,
        note=_note_of_steps(width, skipped, merged=len(band_x) < len(values), above=int((values > axis.high).sum())),
        band=_area(band_x, axis.places(low), axis.places(high)) if width > 1 else "",
        line=_path(x, y),
        dots=(only,) if len(x) == 1 else (),
        marks=tuple(sorted({round(float(step) * 100 / last_step, 1) for step in missing})),
        x_ticks=_step_ticks(last_step),
        y_ticks=axis.ticks(),
        summary=f"{title} by step{mean} from {line[0]:.4g} at step {line_steps[0]:.0f} to {line[-1]:.4g} at step "
        f"{line_steps[-1]:.0f}.",
    )


def curve_of_measurements(
    title: str,
    measured: dict[int, float],
    *,
    last_step: int,
    best: int | None,
    zero: float | None = None,
    start: str = "the base model",
    start_label: str = "base",
) -> Curve | None:
    """Draw a value that was measured now and then, with `best` marked; None when there is no finite one.

    `start` says what was measured before the first step, `start_label` in a word; `zero` is what predicting nothing
    would give, a level line.
    """
    points = [(step, value) for step, value in sorted(measured.items()) if math.isfinite(value)]
    if not points or best is None:
        return None
    stride = -(-len(points) // MOST_POINTS)
    kept = {0, best}
    points = [point for at, point in enumerate(points) if at % stride == 0 or point[0] in kept or at == len(points) - 1]
    values = np.array([value for _, value in points])
    axis = _axis_with(values, zero)
    x = np.round(np.array([step for step, _ in points]) * 100 / last_step, 2)
    y = np.round(axis.places(values), 2)
    dots = {
        step: Dot(x=float(x[at]), y=float(y[at]), title=f"{_named(step, start)}: {value:.4g}", best=step == best)
        for at, (step, value) in enumerate(points)
    }
    level, level_label = _level(axis, zero)
    against = f"; {level.title}" if level else ""
    return Curve(
        title=title,
        note=f"at fixed noise; the best has a ring{'; step 0 is ' + start if 0 in measured else ''}",
        line=_path(x, y),
        dots=tuple(dot for step, dot in dots.items() if step in kept or len(points) <= MOST_DOTS),
        labels=(*_labels(dots, dict(points), best, start_label), *level_label),
        level=level,
        x_ticks=_step_ticks(last_step),
        y_ticks=axis.ticks(),
        summary=f"{title}: best {measured[best]:.4g} at {_named(best, start)}; from {values[0]:.4g} at "
        f"{_named(points[0][0], start)} to {values[-1]:.4g} at {_named(points[-1][0], start)}{against}.",
    )


def _axis_with(values: Floats, zero: float | None) -> Axis:
    """The axis around the values, and around the yardstick as long as that leaves the line enough of the height."""
    low, high = float(values.min()), float(values.max())
    if zero is not None and math.isfinite(zero):
        least, most = min(low, zero), max(high, zero)
        if high == low or (high - low) >= LEAST_SHARE * (most - least):
            low, high = least, most
    return Axis.over(low, high).with_room(values)


def _level(axis: Axis, zero: float | None) -> tuple[Level | None, tuple[Label, ...]]:
    if zero is None or not math.isfinite(zero):
        return None, ()
    y = round(float(axis.places(np.array([zero]))[0]), 2)
    off = " (above the drawing)" if zero > axis.high else " (below the drawing)" if zero < axis.low else ""
    text = f"{YARDSTICK}: {zero:.4g}{off}"
    return Level(y=y, title=text), (Label(x=100, y=y, text=text, below=y < HEAD),)


def _labels(dots: dict[int, Dot], values: dict[int, float], best: int, start: str) -> tuple[Label, ...]:
    """Words at the start and at the best step, which may be one."""
    found = {0: f"{start}: {values[0]:.4g}"} if 0 in dots else {}
    found[best] = f"best, step {best:,}: {values[best]:.4g}" if best else f"{start}, the best: {values[0]:.4g}"
    return tuple(  # the line comes down to the best step from above, unless the foot of the drawing is too near
        Label(x=at.x, y=at.y, text=text, below=at.y < FOOT if at.best else at.y < HEAD)
        for step, text in found.items()
        if (at := dots[step])
    )


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An upright axis from `low` to `high`, both round."""

    low: float
    high: float
    step: float

    @classmethod
    def over(cls, low: float, high: float) -> Axis:
        """The axis around a range; a single value lies in the middle of one that begins at 0."""
        if high == low:
            low, high = sorted((0.0, 2 * low)) if low else (-1.0, 1.0)
        step = round_step((high - low) / 4)
        return cls(low=math.floor(low / step + 1e-9) * step, high=math.ceil(high / step - 1e-9) * step, step=step)

    def with_room(self, values: Floats) -> Axis:
        """The same with a step more where the highest or lowest value leaves no room for words beside it."""
        y = self.places(values)
        low = self.low - self.step if y.max() > FOOT and self.low - self.step >= 0 else self.low
        high = self.high + self.step if y.min() < HEAD else self.high
        return Axis(low=low, high=high, step=self.step)

    def places(self, values: Floats) -> Floats:
        """Where values lie (0 at the top to 100); those beyond the axis lie on its end."""
        return np.clip(100 * (self.high - values) / (self.high - self.low), 0, 100)

    def ticks(self) -> tuple[Tick, ...]:
        """Round values from low to high."""
        count = round((self.high - self.low) / self.step)
        values = [self.low + at * self.step for at in range(count + 1)]
        return tuple(
            Tick(at=round(100 - 100 * at / count, 2), text=f"{0.0 if abs(value) < self.step / 2 else value:.4g}")
            for at, value in enumerate(values)
        )


def round_step(at_least: float) -> float:
    """The next of 1, 2, 2.5, 5, 10 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(at_least))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= at_least * (1 - 1e-9))


def _by_column(
    steps: NDArray[np.int64], values: Floats, last_step: int, pick: Callable[[Floats], float] = np.mean
) -> tuple[Floats, Floats]:
    """For each column of the drawing the middle of its steps, and what `pick` makes of its values."""
    columns = _columns(steps, last_step)
    middles = np.array([part.mean() for part in np.split(steps, columns)])
    return middles, np.array([pick(part) for part in np.split(values, columns)])


def _columns(steps: NDArray[np.int64], last_step: int) -> NDArray[np.int64]:
    """Where the steps of one column of the drawing end and those of the next begin."""
    column = steps * MOST_COLUMNS // (last_step + 1)
    return np.flatnonzero(np.diff(column)) + 1 if last_step > MOST_COLUMNS else np.arange(1, len(steps))


def _step_ticks(last_step: int) -> tuple[Tick, ...]:
    step = max(1, int(round_step(last_step / 5)))
    return tuple(Tick(at=round(100 * at / last_step, 2), text=f"{at:,}") for at in range(0, last_step + 1, step))


def _named(step: int, start: str) -> str:
    return f"step {step}" if step else start


def _note_of_steps(width: int, skipped: Bools | None, *, merged: bool, above: int) -> str:
    if skipped is None:
        return ""
    parts = ["each step"]
    if width > 1:
        parts = ["pale: the range" if merged else "pale: each step", f"line: centered mean of {width:,} steps"]
    if above:
        parts.append(f"{above:,} higher still")
    if skipped.any():
        parts.append(f"red: {int(skipped.sum()):,} skipped")
    return "; ".join(parts)


def _path(x: Floats, y: Floats) -> str:
    return "M" + "L".join(f"{at:.2f} {height:.2f}" for at, height in zip(x, y, strict=True))


def _area(x: Floats, low: Floats, high: Floats) -> str:
    if np.array_equal(low, high):
        return _path(x, low)
    return _path(np.concatenate([x, x[::-1]]), np.concatenate([high, low[::-1]])) + "Z"


def visible(curves: Sequence[Curve | None]) -> tuple[Curve, ...]:
    """Those that have something to show."""
    return tuple(curve for curve in curves if curve)
