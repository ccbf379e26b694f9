"""Any order of calls by servers and workers, on both databases, against what a dictionary says should come of it.

`FLUXSMITH_HYPOTHESIS_EXAMPLES` sets how many orders are tried; 10 unless set.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete, select, update

from services.common.errors import NotFound, NotReady, QuotaExceeded
from services.trainer.database.job_store import JobStore, LostJob
from services.trainer.database.tables import jobs, metadata
from services.trainer.jobs import (
    Job,
    JobState,
    JobWarning,
    Progress,
    StateChanged,
)
from tests.services.trainer.database.test_job_store import FAILURE, HELD_S, NEW, RESULT
from tests.services.trainer.database.test_states import checkpoint

EXAMPLES = int(os.environ.get("FLUXSMITH_HYPOTHESIS_EXAMPLES", "10"))
MAX_ATTEMPTS, MAX_USER_JOBS = 3, 3
WARNING = JobWarning(reason="R", message="m")
S = JobState
HELD = {S.RUNNING, S.PAUSING, S.CANCELLING}
STEPS: dict[JobState, set[JobState]] = {
    S.QUEUED: {S.RUNNING, S.PAUSED, S.CANCELLED},
    S.RUNNING: {S.RUNNING, S.QUEUED, S.PAUSING, S.CANCELLING, S.SUCCEEDED, S.FAILED, S.CANCELLED},
    S.PAUSING: {S.PAUSED, S.RUNNING, S.CANCELLING, S.SUCCEEDED, S.FAILED, S.CANCELLED},
    S.PAUSED: {S.QUEUED, S.CANCELLED},
    S.CANCELLING: {S.CANCELLED},
    S.SUCCEEDED: set(),
    S.FAILED: set(),
    S.CANCELLED: set(),
}
"""Which states may follow which."""


@dataclass
class Expected:
    """What a job should be like. `events` has the states it went through, and `None` for every other event."""

    user_id: str
    state: JobState = S.QUEUED
    epoch: int = 0
    lost: int = 0
    expired: bool = False
    wanted: bool = False
    checkpoints: list[int] = field(default_factory=list)
    events: list[JobState | None] = field(default_factory=lambda: [S.QUEUED])
    removed: bool = False

    def move(self, state: JobState) -> None:
        self.state = state
        self.events.append(state)


class JobStoreMachine(RuleBasedStateMachine):
    """Servers and workers that call in any order, and lose their jobs at any time."""

    store: JobStore

    def __init__(self) -> None:
        super().__init__()
        with self.store._database.writing() as connection:
            for table in reversed(metadata.sorted_tables):
                connection.execute(delete(table))
        self.jobs: dict[str, Expected] = {}
        self.made_by: dict[str, str] = {}
        self.asked: dict[tuple[str, str], str] = {}
        self.deleted: set[str] = set()
        self.claims: list[Job] = []
        self.numbers = iter(range(1, 10_000))

    @initialize()
    def two_jobs(self) -> None:
        for user_id in "ab":
            self.create(user_id, "")
            self.claim(alone=True)

    @rule(user_id=st.sampled_from("ab"), request=st.sampled_from(["", "", "r1", "r2"]))
    def create(self, user_id: str, request: str) -> None:
        request_id = request and f"{request}-{user_id}"
        new = NEW.model_copy(update={"user_id": user_id})

        def call() -> Job:
            return self.store.create("t", new, request_id=request_id, max_user_jobs=MAX_USER_JOBS)

        unfinished = [one for one in self.jobs.values() if one.user_id == user_id and not one.state.ended]
        if request_id in self.made_by:
            if self.made_by[request_id] in self.deleted:
                assert _raises(NotReady, call) == "JOB_DELETED"
            else:
                assert call().job_id == self.made_by[request_id]
        elif len(unfinished) >= MAX_USER_JOBS:
            assert _raises(QuotaExceeded, call) == "USER_QUOTA"
        else:
            job = call()
            assert job.job_id not in self.jobs
            self.jobs[job.job_id] = Expected(user_id=user_id)
            if request_id:
                self.made_by[request_id] = job.job_id

    @rule(alone=st.sampled_from([True, True, False]))
    def claim(self, alone: bool) -> None:
        self._settle()
        waiting = [
            job_id
            for job_id, one in self.jobs.items()
            if one.state is S.QUEUED or (one.state is S.RUNNING and one.expired)
        ]
        job = self.store.claims.claim("w", lease_s=HELD_S, max_attempts=MAX_ATTEMPTS, alone=alone)
        if job is None:
            suspects = [job_id for job_id in waiting if self.jobs[job_id].lost]
            assert not waiting or (suspects and not alone)
            return
        assert job.job_id in waiting
        expected = self.jobs[job.job_id]
        assert alone or not expected.lost
        expected.lost += expected.state is S.RUNNING
        expected.epoch += 1
        expected.expired = False
        expected.move(S.RUNNING)
        assert (job.epoch, job.lost, job.step) == (expected.epoch, expected.lost, _newest(expected))
        self.claims.append(job)

    def _settle(self) -> None:
        """What a claim does with abandoned jobs that need no worker."""
        for one in self.jobs.values():
            if one.expired and one.state in {S.PAUSING, S.CANCELLING}:
                one.lost, one.epoch, one.expired = one.lost + 1, one.epoch + 1, False
                one.move(S.PAUSED if one.state is S.PAUSING else S.CANCELLED)
            elif one.expired and one.lost + 1 >= MAX_ATTEMPTS:
                one.lost, one.epoch, one.expired = one.lost + 1, one.epoch + 1, False
                one.move(S.FAILED)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def lease_runs_out(self, data: st.DataObject) -> None:
        held = [job_id for job_id, one in self.jobs.items() if one.state in HELD]
        if held:
            job_id = data.draw(st.sampled_from(held))
            self._write(job_id, lease_until_s=time.time() - 1)
            self.jobs[job_id].expired = True

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def heartbeat(self, data: st.DataObject) -> None:
        def write(job: Job, expected: Expected) -> None:
            orders = self.store.claims.heartbeat(job, Progress(step=9, total_steps=9, served_s=1), lease_s=HELD_S)
            assert (orders.state, orders.checkpoint) == (expected.state, expected.wanted)
            expected.expired = False

        self._as_worker(data, write)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), count=st.integers(1, 3))
    def append(self, data: st.DataObject, count: int) -> None:
        def write(job: Job, expected: Expected) -> None:
            self.store.claims.append(job, [WARNING] * count)
            expected.events += [None] * count

        self._as_worker(data, write)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), drop_oldest=st.booleans())
    def add_checkpoint(self, data: st.DataObject, drop_oldest: bool) -> None:
        def write(job: Job, expected: Expected) -> None:
            step = next(self.numbers)
            drop = [f"{one:06}" for one in expected.checkpoints[:1]] if drop_oldest else []
            self.store.claims.add_checkpoint(job, checkpoint(step), drop=drop)
            expected.checkpoints = [*expected.checkpoints[len(drop) :], step]
            expected.lost, expected.wanted = 0, False
            expected.events.append(None)

        self._as_worker(data, write)

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def drop_newest_checkpoint(self, data: st.DataObject) -> None:
        def write(job: Job, expected: Expected) -> None:
            self.store.claims.drop_checkpoints(job, [f"{one:06}" for one in expected.checkpoints[-1:]])
            expected.checkpoints = expected.checkpoints[:-1]

        self._as_worker(data, write)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), state=st.sampled_from([S.SUCCEEDED, S.FAILED, S.CANCELLED]))
    def finish(self, data: st.DataObject, state: JobState) -> None:
        def write(job: Job, expected: Expected) -> None:
            failure, result = (FAILURE if state is S.FAILED else None), (RESULT if state is S.SUCCEEDED else None)
            self.store.claims.finish(job, state, last_events=[WARNING], failure=failure, result=result)
            cancelled = expected.state is S.CANCELLING
            expected.events += [] if cancelled else [None]
            expected.move(S.CANCELLED if cancelled else state)
            if expected.state is S.SUCCEEDED:
                expected.checkpoints = []
            expected.expired = False

        self._as_worker(data, write)

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def park(self, data: st.DataObject) -> None:
        def write(job: Job, expected: Expected) -> None:
            state = self.store.claims.park(job, Progress(step=9, total_steps=9))
            if expected.state is not S.CANCELLING:
                expected.move(S.PAUSED if expected.state is S.PAUSING else S.QUEUED)
                expected.expired = False
            assert state is expected.state

        self._as_worker(data, write)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), counted=st.booleans())
    def release(self, data: st.DataObject, counted: bool) -> None:
        def write(job: Job, expected: Expected) -> None:
            self.store.claims.release(job, "stopped", counted=counted)
            becomes = {S.RUNNING: S.QUEUED, S.PAUSING: S.PAUSED, S.CANCELLING: S.CANCELLED}[expected.state]
            expected.lost += counted and becomes is not S.CANCELLED
            expected.move(becomes)
            expected.expired = False

        self._as_worker(data, write)

    def _as_worker(self, data: st.DataObject, write: Callable[[Job, Expected], None]) -> None:
        """Write as one who claimed a job, which must fail and change nothing once it is another's."""
        live = [job for job in self.claims if self._holds(job)]
        choice = self.claims if data.draw(st.integers(0, 4)) == 0 else live
        if not choice:
            return
        job = data.draw(st.sampled_from(choice))
        if self._holds(job):
            write(job, self.jobs[job.job_id])
            return
        with pytest.raises(LostJob):
            write(job, Expected(user_id="", state=S.RUNNING))  # the invariants see that nothing changed

    def _holds(self, job: Job) -> bool:
        expected = self.jobs.get(job.job_id)
        return bool(expected and expected.epoch == job.epoch and expected.state in HELD)

    @rule(
        call=st.sampled_from(["pause", "resume", "cancel", "request_checkpoint"]),
        request=st.sampled_from(["", "", "1"]),
        data=st.data(),
    )
    def ask(self, call: str, request: str, data: st.DataObject) -> None:
        if not self.jobs:
            return
        job_id = data.draw(st.sampled_from(sorted(self.jobs)))
        expected, request_id = self.jobs[job_id], request and f"{call}-{job_id[-8:]}"
        becomes = _BECOMES[call].get(expected.state)
        if (call, request_id) in self.asked and request_id:
            becomes = expected.state  # it was done before
        if becomes is None:
            assert _raises(NotReady, lambda: getattr(self.store, call)("t", job_id, request_id=request_id))
            return
        job = getattr(self.store, call)("t", job_id, request_id=request_id)
        assert job.state is becomes
        if call == "request_checkpoint" and (call, request_id) not in self.asked:
            expected.wanted = True
        if request_id:
            self.asked[call, request_id] = job_id
        if becomes is not expected.state:
            expected.move(becomes)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        known = sorted([*self.jobs, *self.deleted])
        if not known:
            return
        job_id = data.draw(st.sampled_from(known))
        if job_id in self.jobs and not self.jobs[job_id].state.ended:
            assert _raises(NotReady, lambda: self.store.delete("t", job_id)) == "JOB_NOT_ENDED"
            return
        self.store.delete("t", job_id)
        self.jobs.pop(job_id, None)
        self.deleted.add(job_id)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def a_month_passes(self, data: st.DataObject) -> None:
        ended = [job_id for job_id, one in self.jobs.items() if one.state.ended]
        if ended:
            job_id = data.draw(st.sampled_from(ended))
            self._write(job_id, end_time_s=0.0)
            self.store.retention.remove_old(events_kept_days=30)
            self.jobs[job_id].removed = True

    def _write(self, job_id: str, **values: Any) -> None:
        with self.store._database.writing() as connection:
            connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(**values))

    @invariant()
    def jobs_are_as_expected(self) -> None:
        with self.store._database.reading() as connection:
            rows = connection.execute(select(jobs)).mappings().all()
        assert {row["job_id"] for row in rows} == set(self.jobs)
        for row in rows:
            one = self.jobs[row["job_id"]]
            stored = (row["state"], row["epoch"], row["lost"], row["checkpoint_step"], row["last_sequence"])
            assert stored == (one.state, one.epoch, one.lost, _newest(one), len(one.events))
            assert (row["owner"] is not None) == (row["lease_until_s"] is not None) == (one.state in HELD)
            assert (row["result"] is not None) == (one.state is S.SUCCEEDED)
            assert (row["failure"] is not None) == (one.state is S.FAILED)
            assert (row["end_time_s"] is not None) == (row["artifacts"] is not None) == one.state.ended
            assert row["first_sequence"] == (len(one.events) if one.removed else 1)

    @invariant()
    def events_are_gapless_and_go_from_state_to_state(self) -> None:
        for job_id, one in self.jobs.items():
            first = len(one.events) if one.removed else 1
            stored = self.store.events_after(job_id, first - 1, limit=10_000)
            assert [event.sequence for event in stored] == list(range(first, len(one.events) + 1))
            moves = [event.event.state if isinstance(event.event, StateChanged) else None for event in stored]
            assert moves == one.events[first - 1 :]
            states = [state for state in one.events if state]
            assert all(after in STEPS[before] for before, after in pairwise(states))

    @invariant()
    def checkpoints_are_those_that_were_added(self) -> None:
        for job_id, one in self.jobs.items():
            assert [stored.step for stored in self.store.checkpoints("t", job_id)] == one.checkpoints[::-1]
        for job_id in self.deleted:
            assert _raises(NotFound, partial(self.store.get, "t", job_id)) == "JOB_NOT_FOUND"


_BECOMES: dict[str, dict[JobState, JobState]] = {
    "pause": {S.QUEUED: S.PAUSED, S.RUNNING: S.PAUSING, S.PAUSING: S.PAUSING, S.PAUSED: S.PAUSED},
    "resume": {S.QUEUED: S.QUEUED, S.RUNNING: S.RUNNING, S.PAUSING: S.RUNNING, S.PAUSED: S.QUEUED},
    "cancel": {
        S.QUEUED: S.CANCELLED,
        S.PAUSED: S.CANCELLED,
        S.RUNNING: S.CANCELLING,
        S.PAUSING: S.CANCELLING,
        S.CANCELLING: S.CANCELLING,
        S.CANCELLED: S.CANCELLED,
    },
    "request_checkpoint": {S.RUNNING: S.RUNNING},
}


def _newest(expected: Expected) -> int:
    return expected.checkpoints[-1] if expected.checkpoints else 0


def _raises(kind: type[NotReady | NotFound | QuotaExceeded], call: Callable[[], object]) -> str:
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value.reason)


def test_any_order_of_calls_leaves_what_it_should(job_store: JobStore) -> None:
    class Machine(JobStoreMachine):
        store = job_store

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=40,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
