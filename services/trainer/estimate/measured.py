"""Peaks that GPUs showed while FLUX.1-dev's real sizes were trained, newest first.

Made by `python -m benchmarks.gpu`; a test compares them with the committed results. Always rank 16, batch 1, ADAMW and
the layers of IMAGE_STREAM.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run."""

    device: str
    """As its driver names it."""
    date: str
    """YYYY-MM-DD."""
    side_px: int
    gradient_checkpointing: bool
    allocated_gb: float
    reserved_gb: float

    @property
    def configuration(self) -> str:
        """What was run, in a few words."""
        checkpointing = "with" if self.gradient_checkpointing else "without"
        return f"rank 16, batch 1, {self.side_px} px, {checkpointing} gradient checkpointing"


MEASURED: tuple[Measured, ...] = ()


def nearest_first(measured: Iterable[Measured], *, side_px: int, gradient_checkpointing: bool) -> list[Measured]:
    """The runs, those most like a configuration first."""

    def distance(run: Measured) -> tuple[bool, int]:
        return run.gradient_checkpointing is not gradient_checkpointing, abs(run.side_px - side_px)

    return sorted(measured, key=distance)
