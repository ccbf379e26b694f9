"""Servers, workers and the course of time at one job at the same moment: its history stays lawful. Both databases.

All callers wait for the job's row and go on in the order in which they came, having read before what is old by then;
only who claims on PostgreSQL does not wait, and passes the job by.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise

import pytest

from services.common.errors import NotReady, ServiceError
from services.trainer.database.job_store import JobStore, LostJob
from services.trainer.database.rows import read_job
from services.trainer.jobs import Job, JobState, JobWarning, StateChanged
from tests.services.trainer.database.conftest import Alter
from tests.services.trainer.database.test_job_store import HELD_S, NEW, RESULT, take
from tests.services.trainer.database.test_job_store_model import STEPS
from tests.services.trainer.database.test_states import PROGRESS, in_state

Call = Callable[[JobStore, Job], object]
S = JobState
WARNING = JobWarning(reason="R", message="m")
ORDERS = pytest.mark.parametrize("turned", [False, True], ids=["in-order", "turned"])


def claim(store: JobStore, job: Job) -> object:
    """Another worker asks for work."""
    return store.claims.claim("other", lease_s=HELD_S, max_attempts=3)


def asking(call: Callable[[JobStore, str, str], Job]) -> Call:
    """A caller asks for something."""
    return lambda store, job: call(store, job.tenant, job.job_id)


def deletion(job: Job) -> Call:
    """A caller deletes this job."""
    return lambda store, _: store.delete(job.tenant, job.job_id)


def race(store: JobStore, job: Job, *calls: Call) -> list[object]:
    """What each call returns or raises, when all of them come while the job's row is held."""
    with ThreadPoolExecutor(len(calls)) as threads:
        waiting: list[Future[object]] = []
        with store._database.writing() as connection:
            read_job(connection, job.tenant, job.job_id, for_update=True)
            for call in calls:
                waiting.append(threads.submit(call, store, job))
                time.sleep(0.1)  # less of a race if that is too short, and still right
        return [future.exception() or future.result() for future in waiting]


def history(store: JobStore, job: Job) -> list[JobState]:
    """The states of a job, after checking that its events are gapless and lawful, and agree with its row."""
    stored = store.events_after(job.job_id, 0)
    now = store.get(job.tenant, job.job_id)
    assert [event.sequence for event in stored] == list(range(1, now.last_sequence + 1))
    went = [event.event.state for event in stored if isinstance(event.event, StateChanged)]
    assert all(after in STEPS[before] for before, after in pairwise(went))
    assert (went[-1], went.count(S.RUNNING) >= now.attempt) == (now.state, True)
    return went


@ORDERS
@pytest.mark.parametrize("call", [JobStore.cancel, JobStore.pause], ids=["cancel", "pause"])
def test_job_that_is_taken_while_it_is_stopped_is_one_or_the_other(
    job_store: JobStore, call: Callable[[JobStore, str, str], Job], turned: bool
) -> None:
    job = job_store.create("t", NEW)
    calls: list[Call] = [claim, lambda store, job: call(store, "t", job.job_id)]
    taken, stopped = race(job_store, job, *calls[:: -1 if turned else 1])[:: -1 if turned else 1]
    assert isinstance(stopped, Job)
    assert stopped.state in ({S.CANCELLING, S.PAUSING} if taken else {S.CANCELLED, S.PAUSED})
    assert (S.RUNNING in history(job_store, job)) is bool(taken)


@ORDERS
@pytest.mark.parametrize(
    "write",
    [
        lambda store, job: store.claims.append(job, [WARNING]),
        lambda store, job: store.claims.heartbeat(job, PROGRESS, lease_s=HELD_S),
        lambda store, job: store.claims.finish(job, S.SUCCEEDED, last_events=[WARNING], result=RESULT),
        lambda store, job: store.claims.release(job, "stopped"),
    ],
    ids=["append", "heartbeat", "finish", "release"],
)
def test_worker_that_wakes_as_its_job_is_taken_over_writes_once_or_hears_that_it_lost(
    job_store: JobStore, alter: Alter, write: Call, turned: bool
) -> None:
    job_store.create("t", NEW)
    job = take(job_store)
    alter(job.job_id, lease_until_s=time.time() - 1)
    calls = [write, claim][:: -1 if turned else 1]
    wrote, taken = race(job_store, job, *calls)[:: -1 if turned else 1]
    history(job_store, job)
    events = [event.event for event in job_store.events_after(job.job_id, 0)]
    now = job_store.get("t", job.job_id)
    if isinstance(wrote, LostJob):
        assert isinstance(taken, Job)
        assert (WARNING in events, now.state, now.epoch) == (False, S.RUNNING, 2)
    else:
        assert not isinstance(wrote, Exception)
        assert events.count(WARNING) <= 1
        assert now.epoch == (2 if taken else 1)


@ORDERS
@pytest.mark.parametrize("state", [S.RUNNING, S.PAUSING])
def test_end_and_cancellation_at_once_are_one_end(job_store: JobStore, state: JobState, turned: bool) -> None:
    job = in_state(job_store, state)
    calls: list[Call] = [
        lambda store, job: store.claims.finish(job, S.SUCCEEDED, result=RESULT),
        lambda store, job: store.cancel("t", job.job_id),
        lambda store, job: store.resume("t", job.job_id),
    ]
    results = race(job_store, job, *calls[:: -1 if turned else 1])
    assert all(isinstance(each, Job | NotReady | None) for each in results)
    assert [one for one in history(job_store, job) if one.ended] == [job_store.get("t", job.job_id).state]


@ORDERS
def test_job_resumed_or_cancelled_while_it_is_parked_is_not_left_behind(job_store: JobStore, turned: bool) -> None:
    for other, ends in ((JobStore.resume, {S.QUEUED}), (JobStore.cancel, {S.CANCELLED, S.CANCELLING})):
        job = in_state(job_store, S.PAUSING)
        calls: list[Call] = [
            lambda store, job: store.claims.park(job, PROGRESS),
            asking(other),
        ]
        results = race(job_store, job, *calls[:: -1 if turned else 1])
        assert not [each for each in results if isinstance(each, Exception)]
        assert history(job_store, job)[-1] in ends
        job_store.cancel("t", job.job_id)


def test_old_job_is_deleted_while_time_removes_its_events(job_store: JobStore, alter: Alter) -> None:
    for _ in range(3):
        jobs = [in_state(job_store, S.SUCCEEDED) for _ in range(4)]
        for job in jobs:
            alter(job.job_id, end_time_s=1.0)
        calls: list[Call] = [lambda store, _: store.retention.remove_old(events_kept_days=1)]
        calls += [deletion(job) for job in jobs]
        results = race(job_store, jobs[-1], *calls, *calls)
        assert not [each for each in results if isinstance(each, Exception)]
        assert job_store.list("t", before=None, limit=10) == []


def test_creation_repeated_while_its_job_is_deleted_finds_the_job_or_its_tombstone(job_store: JobStore) -> None:
    for number in range(3):
        job = job_store.create("t", NEW, request_id=f"r{number}")
        job_store.cancel("t", job.job_id)

        def again(store: JobStore, job: Job, request_id: str = f"r{number}") -> object:
            try:
                while store.create("t", NEW, request_id=request_id):
                    pass
            except ServiceError as error:
                return error.reason
            return None

        assert race(job_store, job, again, deletion(job), again) == ["JOB_DELETED", None, "JOB_DELETED"]
