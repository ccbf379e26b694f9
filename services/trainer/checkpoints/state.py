"""All that a run goes on from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from services.trainer.milestones import MilestonesState
from services.trainer.train import TrainingState


@dataclass(frozen=True, kw_only=True)
class RunState:
    """A run between two steps, on the CPU and apart from what trains on.

    With the job's configuration and data this is everything: which samples come next, their noise and every other draw
    are functions of the job's seed and `training.steps_done`. `pissa_factors` is what the base gave up (`adapter.py`),
    `skipped_steps` how many steps changed nothing so far, `warm_start_digest` that of the file it began with.
    """

    training: TrainingState
    milestones: MilestonesState
    pissa_factors: Mapping[str, Tensor]
    skipped_steps: int
    warm_start_digest: str = ""
