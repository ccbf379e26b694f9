"""Which checkpoints of a job are kept: while it may need them, and once it has succeeded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from services.trainer.best import best_step
from services.trainer.config import TrainConfig
from services.trainer.jobs import Checkpoint, JobWarning

NEWEST_KEPT = 2
"""So that there is one before a damaged one."""


def dropped(existing: Sequence[Checkpoint], config: TrainConfig) -> list[str]:
    """Identifiers of those that need not be kept while the job goes on; `existing` is newest first.

    Kept are the newest `checkpoints_kept`, the best one by its held-out loss, of equals the newest, and those that were
    asked for.
    """
    kept = {each.checkpoint_id for each in existing[: _newest(config)]} | _asked_for(existing, config)
    measured = {at: each.held_out_loss for at, each in enumerate(existing) if each.held_out_loss is not None}
    if (best := best_step(measured)) is not None:  # places in the list, which begins with the newest
        kept.add(existing[best].checkpoint_id)
    return [each.checkpoint_id for each in existing if each.checkpoint_id not in kept]


def dropped_at_success(existing: Sequence[Checkpoint], config: TrainConfig) -> list[str]:
    """Identifiers of those that a job has no use for once it has succeeded: the ones that nobody asked for."""
    kept = _asked_for(existing, config)
    if config.checkpoints_kept and not config.checkpoint_interval_steps:  # a number of those written now and then
        kept |= {each.checkpoint_id for each in existing[: config.checkpoints_kept]}
    return [each.checkpoint_id for each in existing if each.checkpoint_id not in kept]


def thinned(config: TrainConfig, total_steps: int) -> Iterator[JobWarning]:
    """Say in time that more checkpoints are asked for than will stay, unless it was said how many should."""
    interval = config.checkpoint_interval_steps
    written = (total_steps - 1) // interval if interval else 0
    if config.checkpoints_kept is None and written > NEWEST_KEPT:
        message = (
            f"every {interval} steps {written} checkpoints are written, of which the newest {NEWEST_KEPT} stay: set "
            f"checkpoints_kept to keep more, or checkpoint_keep_interval_steps to {interval} to keep all"
        )
        yield JobWarning(reason="CHECKPOINTS_THINNED", message=message)


def _newest(config: TrainConfig) -> int:
    return config.checkpoints_kept or NEWEST_KEPT


def _asked_for(existing: Sequence[Checkpoint], config: TrainConfig) -> set[str]:
    """Those of CreateCheckpoint, of `checkpoint_keep_interval_steps`, and the newest of `checkpoint_interval_steps`.

    The latter are counted among themselves: pauses and lost workers, which write others, change nothing in what stays.
    """
    kept = {each.checkpoint_id for each in existing if each.requested}
    if keep := config.checkpoint_keep_interval_steps:
        kept |= {each.checkpoint_id for each in existing if each.step and each.step % keep == 0}
    if interval := config.checkpoint_interval_steps:
        periodic = [each.checkpoint_id for each in existing if each.step and each.step % interval == 0]
        kept |= set(periodic[: _newest(config)])
    return kept
