"""What a running job tells the world, and how it hears that it should stop."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from services.trainer.database.job_store import JobStore, LostJob
from services.trainer.jobs import Job, Progress, StepsCompleted
from services.trainer.reporter import CancelJob, NonFiniteLoss, Reporter, StopWorker, read_metrics
from services.trainer.settings import TrainerSettings
from services.trainer.train import Step
from tests.services.trainer.database.test_job_store import EXPIRED_S, NEW, take

SETTINGS = TrainerSettings(heartbeat_s=0.02, lease_s=5)


def step_of(number: int, loss: float = 0.5, norm: float = 1.0, *, skipped: bool = False) -> Step:
    """A step as the loop reports it."""
    return Step(
        number=number,
        loss=torch.tensor(loss),
        gradient_norm=torch.tensor(norm),
        learning_rate=1e-4,
        skipped=skipped,
    )


@pytest.fixture
def job(job_store: JobStore) -> Job:
    """A job that a worker holds."""
    job_store.create("t", NEW)
    return take(job_store)


@pytest.fixture
def stop() -> threading.Event:
    """What tells the worker to end."""
    return threading.Event()


@pytest.fixture
def reporter(job_store: JobStore, job: Job, stop: threading.Event) -> Iterator[Reporter]:
    """A reporter under way."""
    with Reporter(job_store.claims, job, SETTINGS, stop) as one:
        one.total_steps = 10
        yield one


def until(reporter: Reporter) -> None:
    """Let heartbeats pass until the reporter says stop."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        reporter.check()
        time.sleep(0.01)


def test_every_step_is_written_once_and_in_order(job_store: JobStore, job: Job, reporter: Reporter) -> None:
    for number in range(1, 11):
        reporter.on_step(step_of(number, loss=number / 10))
    events = [stored.event for stored in job_store.events_after(job.job_id, 0)]
    steps = [step for event in events if isinstance(event, StepsCompleted) for step in event.steps]
    assert [step.step for step in steps] == list(range(1, 11))
    assert [step.loss for step in steps] == pytest.approx([number / 10 for number in range(1, 11)])


def test_first_and_last_step_are_written_at_once(job_store: JobStore, job: Job, reporter: Reporter) -> None:
    for number, expected in ((1, 1), (10, 2)):
        reporter.on_step(step_of(number))
        events = [stored.event for stored in job_store.events_after(job.job_id, 0)]
        assert sum(isinstance(event, StepsCompleted) for event in events) == expected


def test_heartbeat_reports_the_step_without_being_asked(job_store: JobStore, job: Job, reporter: Reporter) -> None:
    reporter.on_step(step_of(3))
    deadline = time.monotonic() + 60
    while job_store.get("t", job.job_id).step != 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert job_store.get("t", job.job_id).total_steps == 10


def test_cancellation_reaches_the_loop(job_store: JobStore, job: Job, reporter: Reporter) -> None:
    reporter.check()
    job_store.cancel("t", job.job_id)
    with pytest.raises(CancelJob):
        until(reporter)
    with pytest.raises(CancelJob):
        reporter.on_step(step_of(1))


def test_loss_of_the_job_reaches_the_loop(job_store: JobStore, job: Job, reporter: Reporter) -> None:
    job_store.claims.heartbeat(job, Progress(step=0, total_steps=0), lease_s=EXPIRED_S)
    while job_store.claims.claim("other", lease_s=60, max_attempts=3) is None:
        job_store.claims.heartbeat(job, Progress(step=0, total_steps=0), lease_s=EXPIRED_S)
    with pytest.raises(LostJob):
        until(reporter)


def test_stop_of_the_worker_reaches_the_loop(stop: threading.Event, reporter: Reporter) -> None:
    stop.set()
    with pytest.raises(StopWorker):
        reporter.on_step(step_of(1))


@pytest.mark.parametrize(("loss", "norm"), [(float("nan"), 1.0), (0.5, float("inf"))])
def test_number_that_is_not_finite_stops_the_job_at_its_step(reporter: Reporter, loss: float, norm: float) -> None:
    with pytest.raises(NonFiniteLoss, match="at step 10"):
        reporter.on_step(step_of(10, loss, norm))


def test_skipped_step_is_written_with_its_numbers_and_counted(
    job_store: JobStore, job: Job, reporter: Reporter
) -> None:
    reporter.on_step(step_of(9))
    assert reporter.skipped_steps == 0
    reporter.on_step(step_of(10, float("nan"), float("inf"), skipped=True))
    events = [stored.event for stored in job_store.events_after(job.job_id, 0)]
    good, bad = [step for event in events if isinstance(event, StepsCompleted) for step in event.steps]
    assert (good.skipped, bad.skipped) == (False, True)
    assert math.isnan(bad.loss)
    assert bad.gradient_norm == math.inf
    assert reporter.skipped_steps == 1


def test_measurements_keep_their_numbers() -> None:
    (metrics,) = read_metrics([(step_of(4, 0.25, 2.0), 0.125)])
    assert metrics.model_dump() == {
        "step": 4,
        "loss": 0.25,
        "learning_rate": 1e-4,
        "gradient_norm": 2.0,
        "duration_s": 0.125,
        "skipped": False,
    }


def test_time_spent_on_measuring_does_not_count_as_a_step(reporter: Reporter) -> None:
    time.sleep(0.1)
    measured_s = time.monotonic()
    reporter.restart_clock()
    reporter.on_step(step_of(1))
    assert reporter.durations_s[0] <= time.monotonic() - measured_s
