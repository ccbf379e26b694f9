"""The losses of a job as one SVG drawing, for light and dark pages: what is not a curve has the page's own colour."""

import math
from collections.abc import Iterable, Mapping, Sequence

from fluxsmith._smoothing import centered_means, mean_width, without_spikes

_WIDTH, _HEIGHT = 640, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 24, 24  # margins, for the figures on the axes and the legend
_MOST_POINTS = 400  # more than the drawing has pixels to tell apart
_CHARACTER_PX = 6.2  # of the legend, about
_TRAINED, _HELD_OUT, _ZERO = "#4c78a8", "#e45756", "#b07d2b"

Points = Sequence[tuple[float, float]]


def loss_curve(
    trained: Mapping[int, float], held_out: Mapping[int, float], *, last_step: int, zero: float | None = None
) -> str:
    """Draw the losses of steps, their centered mean, and those on the held-out data; empty while there are none.

    Not finite ones are left out. The lowest on the held-out data has a ring; `zero`, the loss of predicting nothing, is
    a level line.
    """
    single, measured = _usual(_finite(trained)), _finite(held_out)
    if not single and not measured:
        return ""
    width = mean_width(len(single))
    mean = smoothed(single)
    level = [(0, zero), (last_step, zero)] if measured and zero is not None and math.isfinite(zero) else []
    shown = [loss for _, loss in (*single, *measured, *level)]
    frame = _Frame(last_step, min(shown), max(shown))
    best = min(measured, key=lambda point: (point[1], point[0]), default=None)
    ring = (
        f'<circle cx="{frame.x(best[0]):.1f}" cy="{frame.y(best[1]):.1f}" r="6" fill="none" stroke="{_HELD_OUT}"/>'
        if best
        else ""
    )
    dots = ring + "".join(
        f'<circle cx="{frame.x(step):.1f}" cy="{frame.y(loss):.1f}" r="3" fill="{_HELD_OUT}">'
        f"<title>{'best ' * ((step, loss) == best)}held-out loss {loss:.4f} {moment(step)}</title></circle>"
        for step, loss in measured
    )
    pale = "stroke-opacity=.3" if width > 1 else "stroke-width=1.5"
    lines = frame.line(single, _TRAINED, pale) + (frame.line(mean, _TRAINED, "stroke-width=2") if width > 1 else "")
    legend = _legend(
        [
            ("loss of each step", _TRAINED, pale, bool(single)),
            (f"centered mean of {width} steps", _TRAINED, "stroke-width=2", width > 1),
            ("held-out loss, the best ringed", _HELD_OUT, "stroke-width=2", bool(measured)),
            ("predicting nothing", _ZERO, "stroke-dasharray=6 4", bool(level)),
        ]
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" style="width:100%;max-width:{_WIDTH}px" role="img" '
        f'aria-label="losses by step" font-size="11" fill="currentColor">'
        f"{frame.axes()}{lines}{frame.line(level, _ZERO, 'stroke-dasharray=6 4')}"
        f"{frame.line(measured, _HELD_OUT, 'stroke-width=1.5')}{dots}{legend}</svg>"
    )


def moment(step: float) -> str:
    """Return when a measurement was made."""
    return f"after step {step:.0f}" if step else "before the first step"


def smoothed(losses: Points) -> list[tuple[float, float]]:
    """Return the centered means, each at the step in the middle of those that it is of."""
    width = mean_width(len(losses))
    means = centered_means([loss for _, loss in losses], width)
    return [(step, mean) for (step, _), mean in zip(losses[width // 2 :], means, strict=False)]


class _Frame:
    """Where steps and losses lie on the drawing."""

    def __init__(self, last_step: int, low: float, high: float) -> None:
        margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        self._last_step = max(last_step, 1)
        self._low, self._high = low - margin, high + margin

    def x(self, step: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * step / self._last_step

    def y(self, loss: float) -> float:
        share = (loss - self._low) / (self._high - self._low)
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * share

    def line(self, points: Points, color: str, style: str) -> str:
        stride = -(-len(points) // _MOST_POINTS) or 1
        kept = [point for at, point in enumerate(points) if at % stride == 0 or at == len(points) - 1]
        if len(kept) == 1:
            kept = [(kept[0][0] - 0.01 * self._last_step, kept[0][1]), *kept]  # a line that can be seen
        path = " ".join(f"{self.x(step):.1f},{self.y(loss):.1f}" for step, loss in kept)
        return f'<polyline points="{path}" fill="none" stroke="{color}" {_quoted(style)}/>' if path else ""

    def axes(self) -> str:
        """Return lines at round losses with their values, and round steps at the foot."""
        rows = "".join(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{self.y(loss):.1f}" y2="{self.y(loss):.1f}" '
            f'stroke="currentColor" stroke-opacity=".15"/>'
            f'<text x="{_LEFT - 6}" y="{self.y(loss) + 4:.1f}" text-anchor="end" opacity=".7">{loss:g}</text>'
            for loss in _round_values(self._low, self._high, 4)
        )
        columns = "".join(
            f'<text x="{self.x(step):.1f}" y="{_HEIGHT - 8}" text-anchor="middle" opacity=".7">{step:g}</text>'
            for step in _round_values(0, self._last_step, 6)
            if step == int(step)
        )
        return rows + columns


def _finite(losses: Mapping[int, float]) -> list[tuple[float, float]]:
    return [(step, loss) for step, loss in sorted(losses.items()) if math.isfinite(loss)]


def _usual(losses: Points) -> list[tuple[float, float]]:
    """Return them with spikes cut: one would also press the drawing flat."""
    kept = without_spikes([loss for _, loss in losses])
    return [(step, loss) for (step, _), loss in zip(losses, kept, strict=True)]


def _quoted(style: str) -> str:
    name, _, value = style.partition("=")
    return f'{name}="{value}"'


def _round_values(low: float, high: float, count: int) -> list[float]:
    """Return about `count` multiples of 1, 2 or 5 times a power of ten in the range."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    gap = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [round(number * gap, 12) for number in range(math.ceil(low / gap), math.floor(high / gap) + 1)]


def _legend(entries: Iterable[tuple[str, str, str, bool]]) -> str:
    """Return a stroke and a text for each entry (text, color, style) that is drawn, side by side."""
    parts, left = [], float(_LEFT)
    for text, color, style, is_drawn in entries:
        if is_drawn:
            stroke = f'<line x2="16" y1="10" y2="10" stroke="{color}" {_quoted(style)}/>'
            parts.append(f'<g transform="translate({left:.0f})"><text x="22" y="14">{text}</text>{stroke}</g>')
            left += 40 + _CHARACTER_PX * len(text)
    return "".join(parts)
