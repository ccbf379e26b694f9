"""The one smoothing of losses, a centered mean: each value stands for as many steps after it as before it.

A mean of past steps alone lies above a falling loss, and so above a held-out loss that is higher. The services draw
by the same rules with numpy, in `services/trainer/results/smoothing.py`; a test holds the two equal.
"""

import math
from collections.abc import Sequence
from itertools import accumulate

MEAN_SHARE = 25
"""A mean is over a 25th of the steps."""
USUAL_SHARE = 0.995
"""Of the steps; losses above those of all these are cut if they are far above."""
RECENT_STEPS = 20
"""Newest steps of which a running job tells the mean: the newest step has none after it, so no centered one."""


def recent_loss_text(losses: Sequence[float]) -> str:
    """Return the mean of the newest losses with its name; empty without any."""
    recent = losses[-RECENT_STEPS:]
    if not recent:
        return ""
    name = "last step" if len(recent) == 1 else f"mean of last {len(recent)}"
    return f"loss {sum(recent) / len(recent):.4f} ({name})"


def mean_width(count: int) -> int:
    """Return of how many steps the mean is among `count`: an odd number, 1 below 50 steps."""
    return 2 * (count // (2 * MEAN_SHARE)) + 1


def centered_means(values: Sequence[float], width: int) -> list[float]:
    """Return the mean of each `width` (odd) values in a row, the first of which belongs to `values[width // 2]`.

    There is none where the mean would lack values on one side, as with pandas' `rolling(width, center=True)`.
    """
    sums = [0.0, *accumulate(values)]
    return [(end - begin) / width for begin, end in zip(sums, sums[width:], strict=False)]


def without_spikes(values: Sequence[float]) -> list[float]:
    """Return finite values with the highest cut that are far above all others: one would lift the mean of a stretch."""
    if not values:
        return []
    usual = sorted(values)[math.floor(USUAL_SHARE * (len(values) - 1))]
    return [min(value, usual) for value in values] if max(values) > 2 * usual else list(values)
