"""Which checkpoints of a job are kept."""

from __future__ import annotations

from collections.abc import Sequence

from services.trainer.config import TrainConfig
from services.trainer.jobs import Checkpoint


def dropped(existing: Sequence[Checkpoint], config: TrainConfig) -> list[str]:
    """Identifiers of those that need not be kept; `existing` is newest first.

    Kept are the newest `checkpoints_kept`, those of every step that `checkpoint_keep_interval_steps` divides, and the
    one with the lowest held-out loss, of equals the newest.
    """
    kept = {each.checkpoint_id for each in existing[: config.checkpoints_kept]}
    if interval := config.checkpoint_keep_interval_steps:
        kept |= {each.checkpoint_id for each in existing if each.step and each.step % interval == 0}
    measured = [each for each in existing if each.held_out_loss is not None]
    if measured:
        kept.add(min(measured, key=lambda each: each.held_out_loss or 0.0).checkpoint_id)
    return [each.checkpoint_id for each in existing if each.checkpoint_id not in kept]
