"""What a trainer's server does now and then: lets go of what nobody needs any more, so that nothing grows for ever."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from services.common.errors import NotFound, ServiceError
from services.common.object_store import ObjectStore
from services.trainer.data.holds import release_ended
from services.trainer.database.job_store import JobStore
from services.trainer.memory import collect_garbage, trim_heap
from services.trainer.results.job_files import checkpoints_prefix, job_prefix
from services.trainer.settings import TrainerSettings

log = logging.getLogger(__name__)

MINUTE_S = 60.0
INTERVAL_MINUTES = 10
CLOSE_S = 5.0


class Housekeeping:
    """A thread that keeps house until closed. Several servers may do so at once: each thing is done again in vain.

    In its own process it also returns memory.
    """

    def __init__(
        self, objects: ObjectStore, jobs: JobStore, settings: TrainerSettings, *, own_process: bool = False
    ) -> None:
        self._own_process = own_process
        self._objects = objects
        self._jobs = jobs
        self._settings = settings
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)

    def start(self) -> None:
        """Begin, with the first round after ten minutes; memory goes back every minute."""
        self._thread.start()

    def close(self) -> None:
        """Stop; a round under way is given a moment to end."""
        self._stopping.set()
        self._thread.join(CLOSE_S)

    def keep_house(self) -> None:
        """One round. What cannot be done now is logged, and done in a later one."""
        for work in (self._release_holds, self._discard_checkpoints, self._delete_old_jobs, self._remove_old_events):
            _try(work)

    def _run(self) -> None:
        for minute in itertools.count(1):
            if self._stopping.wait(MINUTE_S):
                return
            if self._own_process:
                collect_garbage()
                trim_heap()
            if minute % INTERVAL_MINUTES == 0:
                self.keep_house()

    def _release_holds(self) -> None:
        for tenant in list(self._objects.folders("")):
            release_ended(self._objects, self._jobs, tenant, now=datetime.now(UTC))

    def _discard_checkpoints(self) -> None:
        for tenant, job_id in self._jobs.retention.checkpoints_to_discard():
            self._objects.delete_prefix(checkpoints_prefix(tenant, job_id))
            self._jobs.retention.checkpoints_discarded(job_id)

    def _delete_old_jobs(self) -> None:
        def due() -> Sequence[tuple[str, str]]:
            return self._jobs.retention.due_for_deletion(jobs_kept_days=self._settings.jobs_kept_days)

        while (found := due()) and not self._stopping.is_set():
            for tenant, job_id in found:
                delete_job(self._objects, self._jobs, tenant, job_id)

    def _remove_old_events(self) -> None:
        self._jobs.retention.remove_old(events_kept_days=self._settings.events_kept_days)


def delete_job(objects: ObjectStore, jobs: JobStore, tenant: str, job_id: str) -> None:
    """Remove an ended job with all its files; no error when it is gone already."""
    try:
        if jobs.require_ended(tenant, job_id):
            objects.delete_prefix(job_prefix(tenant, job_id))  # first: what is left over can be deleted again
            jobs.delete(tenant, job_id)
    except NotFound:
        return


def _try(work: Callable[[], None]) -> None:
    try:
        work()
    except ServiceError as error:
        log.warning("put off: %s", error.log_line)
    except Exception:  # the broad except of this thread: the next round does what this one did not
        log.exception("housekeeping failed")
