"""The checkpoints of one job: written, found again, and thinned out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from services.common.object_store import ObjectStore
from services.trainer.checkpoints.fingerprints import Fingerprints
from services.trainer.checkpoints.retention import dropped
from services.trainer.checkpoints.sets import (
    CheckpointDamaged,
    CheckpointOfOtherData,
    delete_set,
    read_set,
    write_set,
)
from services.trainer.checkpoints.state import RunState
from services.trainer.database.claims import Claims
from services.trainer.jobs import Checkpoint, Event, Job, JobWarning

log = logging.getLogger(__name__)


class Checkpoints:
    """Objects in the store and rows in the database, in the order that makes each step safe.

    `write_events` tells the world. Everything may raise `Unavailable` and `LostJob`, and may be called again.
    """

    def __init__(
        self,
        job: Job,
        store: ObjectStore,
        claims: Claims,
        write_events: Callable[[Sequence[Event]], None],
        fingerprints: Fingerprints,
    ) -> None:
        self._job = job
        self._store = store
        self._claims = claims
        self._write_events = write_events
        self._fingerprints = fingerprints
        self._to_delete: dict[str, Checkpoint] = {}

    def write(self, state: RunState, lora: bytes, held_out_loss: float | None) -> Checkpoint:
        """Write a checkpoint; `lora` is the file that would be published now. First the objects, then the row.

        `held_out_loss` is what was measured after the very step. A checkpoint of the same step and epoch that is known
        already stays as it is: a run goes on from it to the same end.
        """
        existing = self._claims.checkpoints(self._job)
        checkpoint_id = f"{state.training.steps_done:06}-{self._job.epoch}"
        known = next((each for each in existing if each.checkpoint_id == checkpoint_id), None)
        if known:
            written = Checkpoint.model_validate(known.model_dump(exclude={"create_time_s"}))
        else:
            written = write_set(self._store, self._job, state, lora, self._fingerprints, held_out_loss)
        others = [each for each in existing if each.checkpoint_id != checkpoint_id]
        ids = set(dropped([written, *others], self._job.config))
        self._to_delete |= {each.checkpoint_id: each for each in others if each.checkpoint_id in ids}
        self._claims.add_checkpoint(self._job, written, drop=ids)
        self._delete_dropped()
        return written

    def newest(self) -> RunState | None:
        """The state of the newest checkpoint that is whole, or None. Others are passed over, which is told.

        Raises `CheckpointOfOtherBase`: where the base is the right one, the job can still go on from it.
        """
        for checkpoint in self._claims.checkpoints(self._job):
            try:
                restored = read_set(self._store, checkpoint, self._job, self._fingerprints)
            except (CheckpointDamaged, CheckpointOfOtherData) as error:
                log.warning("%s: %s", self._job.job_id, error.log_line)
                self._write_events([JobWarning(reason="CHECKPOINT_SKIPPED", message=error.line)])
                # Its objects stay until the job has ended: somebody may want to know what became of them.
                self._claims.drop_checkpoints(self._job, [checkpoint.checkpoint_id])
                continue
            warnings = [JobWarning(reason="CHECKPOINT_OF_OTHER_VERSION", message=text) for text in restored.warnings]
            if warnings:
                self._write_events(warnings)
            return restored.state
        return None

    def _delete_dropped(self) -> None:
        for checkpoint_id, checkpoint in list(self._to_delete.items()):
            delete_set(self._store, checkpoint)
            del self._to_delete[checkpoint_id]
