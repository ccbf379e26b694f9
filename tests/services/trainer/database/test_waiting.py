"""What workers with jobs enough ask: who is next in line, and how many jobs its tenant and user have already."""

from __future__ import annotations

import time

from services.trainer.database.claims import Waiting
from services.trainer.database.job_store import JobStore
from services.trainer.jobs import JobState
from tests.services.trainer.database.conftest import Alter
from tests.services.trainer.database.test_job_store import EXPIRED_S, NEW, take
from tests.services.trainer.database.test_line import queue


def waiting(store: JobStore, *, max_attempts: int = 3, retry_delay_s: float = 0.0) -> Waiting | None:
    return store.claims.waiting(max_attempts=max_attempts, retry_delay_s=retry_delay_s)


def test_nobody_waits_in_an_empty_line(job_store: JobStore) -> None:
    assert waiting(job_store) is None
    job_store.create("t", NEW)
    take(job_store)
    assert waiting(job_store) is None


def test_next_in_line_is_the_one_that_is_claimed_then(job_store: JobStore) -> None:
    queue(job_store, ("s", "a", 0), ("t", "b", 1), ("t", "b", 9), ("t", "c", 5), ("t", "c", 9), ("s", "d", 2))
    for _ in range(6):
        found = waiting(job_store)
        assert found == waiting(job_store)
        job = take(job_store)
        assert found
        assert (found.job_id, found.tenant, found.user_id) == (job.job_id, job.tenant, job.user_id)
        assert found.priority == job.priority
    assert waiting(job_store) is None


def test_only_jobs_that_workers_have_are_active(job_store: JobStore) -> None:
    queue(job_store, *[("t", "a", 0)] * 3, *[("t", "b", 0)] * 2, ("s", "a", 0))
    held = [take(job_store) for _ in range(5)]
    job_store.pause("t", next(job for job in held if job.tenant == "t").job_id)  # it is held until it is parked
    assert job_store.claims.active_counts() == ({"t": 4, "s": 1}, {("t", "a"): 2, ("t", "b"): 2, ("s", "a"): 1})
    found = waiting(job_store)
    assert found
    assert (found.tenant, found.user_id, found.tenant_active, found.user_active) == ("t", "a", 4, 2)
    for job in held:
        job_store.claims.finish(job, JobState.FAILED)
    assert job_store.claims.active_counts() == ({}, {})
    found = waiting(job_store)
    assert found
    assert (found.tenant_active, found.user_active) == (0, 0)


def test_abandoned_job_is_not_active_and_waits_until_it_has_rested(job_store: JobStore, alter: Alter) -> None:
    job_store.create("t", NEW)
    take(job_store, lease_s=EXPIRED_S)
    job = take(job_store)
    alter(job.job_id, lease_until_s=time.time() - 20)
    assert job_store.claims.active_counts() == ({}, {})
    assert waiting(job_store, max_attempts=9, retry_delay_s=30) is None
    found = waiting(job_store, max_attempts=9)
    assert found
    assert (found.job_id, found.user_active, found.suspect) == (job.job_id, 0, True)


def test_job_that_the_next_claim_gives_up_is_not_next(job_store: JobStore) -> None:
    job_store.create("t", NEW)
    take(job_store, lease_s=EXPIRED_S)
    assert waiting(job_store, max_attempts=1) is None
    found = waiting(job_store, max_attempts=2)
    assert found
    assert found.suspect
    found = waiting(job_store, max_attempts=3)
    assert found
    assert not found.suspect
