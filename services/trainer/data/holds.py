"""Lets go of what ended jobs have held in the object store (`dataset_references.py`), so that it can be collected."""

from __future__ import annotations

from datetime import datetime, timedelta

from services.common.errors import NotFound
from services.common.object_store import ObjectStore
from services.trainer.database.job_store import JobStore

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
