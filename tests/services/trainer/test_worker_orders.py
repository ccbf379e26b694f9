"""What a worker does about a job that ends in any way: tries again, gives up, makes room, leaves nothing behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import update

from services.common.errors import InvalidInput, Unavailable
from services.common.object_store import ObjectStore
from services.trainer.database.claims import LostJob
from services.trainer.database.job_store import JobStore
from services.trainer.database.tables import jobs as jobs_table
from services.trainer.jobs import Job, JobState
from services.trainer.reporter import PauseJob, Reporter, StopWorker
from services.trainer.results.job_files import job_prefix
from services.trainer.run_job import Workplace
from services.trainer.settings import TrainerSettings
from services.trainer.worker import HUNG, Active, Worker
from tests.services.trainer.database.test_job_store import NEW, states, take
from tests.services.trainer.database.test_states import checkpoint
from tests.services.trainer.turning import until

AWAY = Unavailable("the database is away", reason="DATABASE_UNAVAILABLE", remedy="wait")
Work = Callable[[Job, Reporter], None]


@dataclass
class Site:
    """A worker whose jobs do what the test says in place of training."""

    jobs: JobStore
    place: Workplace
    stop: threading.Event
    worker: Worker
    work: Work

    def create(self, user_id: str = "") -> Job:
        return self.jobs.create("t", NEW.model_copy(update={"user_id": user_id}))

    def get(self, job: Job) -> Job:
        return self.jobs.get(job.tenant, job.job_id)

    def run(self, work: Work) -> Job:
        """Let the worker run the next job."""
        self.work = work
        job = take(self.jobs)
        self.worker.run_one(job)
        return self.get(job)

    @contextmanager
    def working(self, work: Work) -> Iterator[None]:
        """The worker at work in a thread."""
        self.work = work
        thread = threading.Thread(target=self.worker.run)
        thread.start()
        try:
            yield
        finally:
            self.stop.set()
            thread.join(60)


@pytest.fixture
def site(job_store: JobStore, store: ObjectStore, tenant: str, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A worker of two jobs and two attempts that waits for nothing."""
    settings = TrainerSettings(heartbeat_s=0.02, max_attempts=2, retry_delay_s=0, active_jobs=2)
    nothing: Any = None
    place, stop = Workplace(base=nothing, store=store, jobs=job_store, settings=settings), threading.Event()
    made = Site(job_store, place, stop, Worker(place, stop), lambda *_: None)
    for name, seconds in {"RETRY_S": 0.01, "IDLE_S": 0.01, "SUSPECT_S": 0.0}.items():
        monkeypatch.setattr(f"services.trainer.worker.{name}", seconds)

    def run_job(job: Job, _place: object, _link: object, reporter: Reporter, _turn: object) -> None:
        made.work(job, reporter)
        raise InvalidInput("that is all", reason="END_OF_TEST", remedy="none")

    monkeypatch.setattr("services.trainer.worker.run_job", run_job)
    return made


def broken(*_: object) -> None:
    raise KeyError("a mistake of the service's own")


def save_and_break(site: Site) -> Work:
    """Work that writes a checkpoint before it breaks."""

    def work(job: Job, _: Reporter) -> None:
        site.jobs.claims.add_checkpoint(job, checkpoint(job.epoch))
        broken()

    return work


def test_error_of_the_service_is_tried_so_often_without_a_checkpoint(site: Site) -> None:
    site.create()
    assert [(job.state, job.lost) for job in (site.run(broken), site.run(broken))] == [
        (JobState.QUEUED, 1),
        (JobState.FAILED, 1),
    ]


def test_checkpoint_of_the_attempt_that_fails_starts_the_count_anew(site: Site) -> None:
    site.create()
    found = [site.run(work) for work in (broken, save_and_break(site), broken)]
    assert [(job.state, job.lost) for job in found[:2]] == [(JobState.QUEUED, 1), (JobState.QUEUED, 1)]
    assert found[2].state is JobState.FAILED


def test_fault_of_the_user_is_not_tried_again(site: Site) -> None:
    site.create()
    assert site.run(lambda *_: None).state is JobState.FAILED


def test_cancellation_that_comes_while_a_pause_is_carried_out_ends_the_job(site: Site) -> None:
    site.create()

    def work(job: Job, _: Reporter) -> None:
        site.jobs.pause(job.tenant, job.job_id)
        site.jobs.cancel(job.tenant, job.job_id)
        raise PauseJob

    assert site.run(work).state is JobState.CANCELLED


def test_resumption_that_comes_while_a_pause_is_carried_out_queues_the_job(site: Site) -> None:
    site.create()

    def work(job: Job, _: Reporter) -> None:
        site.jobs.pause(job.tenant, job.job_id)
        site.jobs.resume(job.tenant, job.job_id)
        raise PauseJob

    assert site.run(work).state is JobState.QUEUED


@pytest.mark.parametrize("call", ["finish", "park", "release"])
def test_ending_is_written_once_the_database_is_back_whatever_was_ordered(
    site: Site, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.create()
    real, outages = getattr(site.jobs.claims, call), iter([1, 1])

    def away_at_first(*arguments: Any, **options: Any) -> Any:
        if next(outages, None):
            raise AWAY
        return real(*arguments, **options)

    def work(job: Job, reporter: Reporter) -> None:
        site.jobs.cancel(job.tenant, job.job_id)
        until(reporter.wanted_elsewhere)  # from here on every check raises
        if call != "finish":
            raise PauseJob if call == "park" else AWAY

    monkeypatch.setattr(site.jobs.claims, call, away_at_first)
    assert site.run(work).state is JobState.CANCELLED


def test_stopped_worker_does_not_wait_for_the_database(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.create()

    def away(*_: object, **__: object) -> None:
        raise AWAY

    def work(*_: object) -> None:
        site.stop.set()
        raise StopWorker

    monkeypatch.setattr(site.jobs.claims, "release", away)
    with pytest.raises(Unavailable):
        site.run(work)


def test_job_that_was_deleted_behind_a_lost_worker_leaves_no_files(site: Site) -> None:
    job = site.create()
    key = f"{job_prefix('t', job.job_id)}1/late"

    def work(job: Job, reporter: Reporter) -> None:
        with site.jobs._database.writing() as connection:
            connection.execute(update(jobs_table).values(epoch=9))
        site.jobs.claims.finish(job.model_copy(update={"epoch": 9}), JobState.CANCELLED)
        site.jobs.delete("t", job.job_id)
        site.place.store.put(key, b"late")
        until(reporter.wanted_elsewhere)
        reporter.check()

    site.work = work
    site.worker._run_in_thread(Active(job=take(site.jobs), leave=threading.Event()))
    assert list(site.place.store.keys(job_prefix("t", job.job_id))) == []


def test_job_that_another_worker_has_keeps_its_files(site: Site) -> None:
    job = site.create()
    key = f"{job_prefix('t', job.job_id)}1/file"

    def work(*_: object) -> None:
        site.place.store.put(key, b"file")
        raise LostJob(job.job_id)

    site.work = work
    site.worker._run_in_thread(Active(job=take(site.jobs), leave=threading.Event()))
    assert list(site.place.store.keys(job_prefix("t", job.job_id))) == [key]


def test_memory_that_is_too_small_for_two_is_tried_alone_and_only_once(site: Site) -> None:
    inside: set[str] = set()

    def work(job: Job, reporter: Reporter) -> None:
        inside.add(job.user_id)
        until(lambda: reporter.wanted_elsewhere() or job.user_id == "big" or "big" in inside)
        if job.user_id == "big":
            raise MemoryError

    for user in ("small", "big"):
        site.create(user)
    small, big = site.jobs.list("t", before=None, limit=2)[::-1]
    with site.working(work):
        until(lambda: site.get(big).state.ended and site.get(small).state.ended)
    assert states(site.jobs, big).count(JobState.RUNNING) <= 2
    failure = site.get(big).failure
    assert failure
    assert failure.reason == "OUT_OF_MEMORY"


def test_suspect_runs_alone_until_its_first_checkpoint(site: Site) -> None:
    site.create("suspect")
    site.jobs.claims.release(take(site.jobs), "its worker died", counted=True)
    may_save = threading.Event()
    beside: list[bool] = []

    def work(job: Job, _: Reporter) -> None:
        if job.user_id == "suspect":
            until(may_save.is_set)
            site.jobs.claims.add_checkpoint(job, checkpoint(1))
            until(lambda: beside)
        else:
            beside.append(may_save.is_set())

    other = site.create("other")
    with site.working(work):
        until(lambda: site.worker._active)
        time.sleep(0.3)  # many looks for more
        assert site.get(other).state is JobState.QUEUED
        may_save.set()
        until(lambda: site.get(other).state.ended)
    assert beside == [True]


def test_hung_job_sends_its_neighbours_back_though_one_is_lost(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr("services.trainer.worker.os._exit", ended.append)
    for _ in range(3):
        site.create()
    hung, lost, neighbour = (take(site.jobs) for _ in range(3))
    site.jobs.claims.finish(lost, JobState.FAILED)
    site.worker._active = {
        threading.Thread(): Active(job=job, leave=threading.Event()) for job in (hung, lost, neighbour)
    }
    site.worker._end_this_worker(hung)
    assert ended == [HUNG]
    found = [site.get(job) for job in (hung, lost, neighbour)]
    assert [job.state for job in found] == [JobState.QUEUED, JobState.FAILED, JobState.QUEUED]
    assert [job.lost for job in found] == [1, 0, 0]
