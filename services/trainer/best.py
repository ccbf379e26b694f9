"""What makes a step the best of a run: the one place that says what is looked at, and which way is better.

What is looked at is the held-out loss. The run's best adapter, the checkpoint that stays for it, the report and its
curve all ask here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

LOOKED_AT = "held-out loss"
MOST = "lowest"  # what a best value is called among the others


def is_better(value: float, than: float) -> bool:
    """Whether a measurement beats an earlier one by any amount."""
    return value < than


def best_step(measured: Mapping[int, float]) -> int | None:
    """The step with the best measurement, of equals the first; None where nothing finite was measured."""
    best: int | None = None
    for step, value in sorted(measured.items()):
        if math.isfinite(value) and (best is None or is_better(value, measured[best])):
            best = step
    return best
