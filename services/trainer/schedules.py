"""How the learning rate changes over a run: a pure function of the step, so that a resumed run goes on exactly.

After a linear warm-up the rate falls from 1 to r = `final_learning_rate_ratio`, both as shares of `learning_rate`. With
p, the share of the steps after the warm-up that is done:

    CONSTANT              1
    LINEAR                r + (1 - r) (1 - p)
    POLYNOMIAL            r + (1 - r) (1 - p)^power
    COSINE                r + (1 - r) (1 + cos(pi p)) / 2
    COSINE_WITH_RESTARTS  the same with (cycles p) mod 1 in place of p

The shapes are those of diffusers' `optimization.py` (its warm-up begins at 0, and so wastes a step). SGDR, Loshchilov
and Hutter 2017 (arXiv 1608.03983), is the source of the cosines.
"""

from __future__ import annotations

import math

from services.trainer.config import TrainConfig
from services.trainer.config.choices import LearningRateSchedule


def learning_rate_factor(config: TrainConfig, step: int, total_steps: int) -> float:
    """What `learning_rate` is multiplied by in step `step`, counted from 0.

    `final_learning_rate_ratio` is reached at `total_steps`, the step after the last: so no step of a run that falls to
    0 is wasted on a rate of 0. A warm-up as long as the run or longer is cut off where the run ends.
    """
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    done = min(1.0, (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps))
    ratio = config.final_learning_rate_ratio
    return ratio + (1 - ratio) * _remaining(config, done)


def _remaining(config: TrainConfig, done: float) -> float:
    """What is left of the fall, from 1 to 0, when a share `done` of the steps is done."""
    match config.learning_rate_schedule:
        case LearningRateSchedule.CONSTANT:
            return 1.0
        case LearningRateSchedule.LINEAR:
            return 1 - done
        case LearningRateSchedule.POLYNOMIAL:
            return float((1 - done) ** config.schedule_power)
        case LearningRateSchedule.COSINE:
            return _half_cosine(done)
        case LearningRateSchedule.COSINE_WITH_RESTARTS:
            return _half_cosine(config.schedule_cycles * done % 1 if done < 1 else 1)


def _half_cosine(done: float) -> float:
    return (1 + math.cos(math.pi * done)) / 2
