"""The one smoothing of losses, a centered mean: each value stands for as many steps after it as before it.

The client draws by the same rules without numpy, in `clients/fluxsmith/_smoothing.py`; a test holds the two equal.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

MEAN_SHARE = 25  # a mean is over a 25th of the steps
USUAL_SHARE = 0.995  # of the steps; values above those of all these are cut if they are far above

Floats = NDArray[np.float64]


def mean_width(count: int) -> int:
    """Of how many steps the mean is among `count`: an odd number, 1 below 50 steps."""
    return 2 * (count // (2 * MEAN_SHARE)) + 1


def centered_means(values: Floats, width: int) -> Floats:
    """Mean of each `width` (odd) values in a row, the first of which belongs to `values[width // 2]`.

    There is none where the mean would lack values on one side, as with pandas' `rolling(width, center=True)`.
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    means: Floats = (sums[width:] - sums[:-width]) / width
    return means


def without_spikes(values: Floats) -> Floats:
    """Finite values with the highest cut that are far above all others: one would lift the mean of a whole stretch."""
    if not len(values):
        return values
    usual = np.sort(values)[math.floor(USUAL_SHARE * (len(values) - 1))]
    return np.minimum(values, usual) if values.max() > 2 * usual else values
