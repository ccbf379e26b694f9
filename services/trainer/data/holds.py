"""Lets go of what ended jobs have held in the object store (`dataset_references.py`), so that it can be collected."""

from __future__ import annotations

import logging
import threading
from datetime import UTC, datetime, timedelta

from services.common.errors import NotFound, ServiceError
from services.common.object_store import ObjectStore
from services.trainer.database.job_store import JobStore

log = logging.getLogger(__name__)

INTERVAL_S = 600.0
NEW = timedelta(hours=1)  # the job of a new hold may still be being made
FORGOTTEN = timedelta(days=7)  # until then, an unknown job may be that of another trainer on the same store


def release_ended(objects: ObjectStore, jobs: JobStore, tenant: str, *, now: datetime) -> int:
    """Remove the holds of a tenant's jobs that have ended or are gone; return how many."""
    released = 0
    for hold in list(objects.listed(f"{tenant}/holds/")):
        age = now - hold.changed
        if age > NEW and _ended(jobs, tenant, hold.key.rpartition("/")[2], unknown=age > FORGOTTEN):
            objects.delete(hold.key)
            released += 1
    return released


def _ended(jobs: JobStore, tenant: str, job_id: str, *, unknown: bool) -> bool:
    try:
        return jobs.get(tenant, job_id).state.ended
    except NotFound:
        return unknown


class HoldsThread:
    """Releases holds now and then, until closed."""

    def __init__(self, objects: ObjectStore, jobs: JobStore) -> None:
        self._objects = objects
        self._jobs = jobs
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="holds", daemon=True)

    def start(self) -> None:
        """Begin, with the first round after one interval."""
        self._thread.start()

    def close(self) -> None:
        """Stop."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.wait(INTERVAL_S):
            try:
                for tenant in list(self._objects.folders("")):
                    release_ended(self._objects, self._jobs, tenant, now=datetime.now(UTC))
            except ServiceError as error:
                log.warning("holds are released later: %s", error.line)
            except Exception:  # the broad except of this thread: the next round does what this one did not
                log.exception("holds could not be released")
