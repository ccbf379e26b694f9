"""Peaks that a GPU showed while FLUX.1-dev's real sizes were trained.

Made by `python -m benchmarks.memory`; a test compares them with the committed results, which are not in the image of a
service. torch was 2.11.0 there, whose autocast leaves the norms of queries and keys in bf16: see `docs/memory.md`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from services.trainer.config.fields import ConfigFields

DEVICE, DATE = "NVIDIA H200", "2026-11-28"


@dataclass(frozen=True)
class Measured:
    """A run, by what of its configuration was not the default. Sizes in 1e9 bytes."""

    side_px: int
    allocated_gb: float
    reserved_gb: float
    changed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> ConfigFields:
        """Its configuration."""
        return ConfigFields.model_validate(self.changed)

    @property
    def configuration(self) -> str:
        """What was run, in a few words."""
        checkpointing = "with" if self.config.gradient_checkpointing else "without"
        others = self.changed.keys() - {"rank", "alpha", "batch_size", "gradient_checkpointing", "learning_rate"}
        words = [f"rank {self.config.rank}", f"batch {self.config.batch_size}", f"{self.side_px} px"]
        words += [f"{checkpointing} gradient checkpointing"]
        return ", ".join([*words, *(f"{name} {self.changed[name]}" for name in sorted(others))])


MEASURED = (
    Measured(512, 25.30, 25.98, {}),
    Measured(1024, 26.99, 28.04, {}),
    Measured(1024, 27.59, 28.58, {"rank": 32, "alpha": 32.0}),
    Measured(1024, 29.51, 31.23, {"batch_size": 2}),
    Measured(1024, 34.55, 37.62, {"batch_size": 4}),
    Measured(1024, 27.19, 28.25, {"ema_decay": 0.99}),
    Measured(1024, 26.70, 27.51, {"optimizer": "ADAMW_8BIT"}),
    Measured(1024, 27.29, 28.15, {"optimizer": "PRODIGY", "learning_rate": 1.0}),
    Measured(1024, 26.62, 27.43, {"optimizer": "ADAFACTOR"}),
    Measured(1024, 27.50, 28.72, {"targets": "ALL_LINEAR"}),
    Measured(1024, 28.97, 30.09, {"adapter_type": "LOKR"}),
    Measured(1024, 29.14, 30.01, {"adapter_type": "DORA"}),
    Measured(512, 26.68, 27.41, {"adapter_type": "LOHA", "rank": 8, "alpha": 8.0}),
    Measured(512, 27.82, 29.07, {"batch_size": 4}),
    Measured(512, 35.72, 36.42, {"gradient_checkpointing": False}),
    Measured(512, 38.88, 39.90, {"targets": "ALL_LINEAR", "gradient_checkpointing": False}),
    Measured(512, 47.04, 47.87, {"batch_size": 2, "gradient_checkpointing": False}),
    Measured(1024, 58.97, 60.11, {"gradient_checkpointing": False}),
)


def nearest_first(measured: Iterable[Measured], config: ConfigFields, *, side_px: int) -> list[Measured]:
    """The runs, those most like a configuration first."""
    counted = {name for run in MEASURED for name in run.changed} - {"alpha", "learning_rate"}

    def distance(run: Measured) -> tuple[int, int]:
        unlike = sum(getattr(run.config, name) != getattr(config, name) for name in counted)
        return unlike, abs(run.side_px - side_px)

    return sorted(measured, key=distance)
