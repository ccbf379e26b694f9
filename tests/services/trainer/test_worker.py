"""A worker and what goes wrong around its jobs: what it tries again, what it gives up, whom it sends away."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from services.trainer.database.claims import LostJob
from services.trainer.flow_matching import loss_per_sample
from services.trainer.jobs import (
    JobState,
    StateChanged,
)
from services.trainer.kernels import choose_kernels
from services.trainer.worker import HUNG, Worker
from tests.services.trainer import disturbed
from tests.services.trainer.database.test_job_store import take
from tests.services.trainer.disturbed import LONG, Alone, create, digest, stop_after, until, working
from tests.services.trainer.test_run_job import CONFIG, Bench

bench, refusing_server = disturbed.bench, disturbed.refusing_server  # fixtures are found by these names
transformer, known, alone = disturbed.transformer, disturbed.known, disturbed.alone


def test_job_that_may_kill_workers_runs_alone_and_others_make_room(
    bench: Bench, alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.trainer.worker.SUSPECT_S", 0.0)
    undisturbed = alone(LONG)
    create(bench, CONFIG, "one")
    bench.jobs.claims.release(take(bench.jobs), "its worker died", counted=True)
    suspect = bench.jobs.list(bench.tenant, before=None, limit=1)[0]
    bench.jobs.pause(bench.tenant, suspect.job_id)
    long = create(bench, LONG.model_copy(update={"steps": 60}), "other")
    thread, stop = working(bench, active_jobs=2, max_attempts=5)
    try:
        until(bench, long, lambda found: found.step > 0)
        bench.jobs.resume(bench.tenant, suspect.job_id)
        assert until(bench, suspect, lambda found: found.state.ended).state is JobState.SUCCEEDED
        until(bench, long, lambda found: found.state.ended)
    finally:
        stop.set()
        thread.join()
    messages = [event.message for event in bench.events(long) if isinstance(event, StateChanged)]
    assert any("makes room" in message for message in messages)
    assert digest(bench, bench.run(LONG)) == undisturbed.digest


def test_step_that_hangs_is_told_and_ends_its_worker(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr("services.trainer.worker.os._exit", ended.append)
    settings = bench.place.settings.model_copy(update={"stall_s": 1.0})
    job = create(bench, LONG)
    stop_after(bench, 3, lambda: until(bench, job, lambda found: found.state is JobState.QUEUED), monkeypatch)
    with pytest.raises(LostJob):
        Worker(replace(bench.place, settings=settings), bench.stop).run_one(take(bench.jobs))
    found = bench.jobs.get(bench.tenant, job.job_id)
    assert (found.state, found.lost, ended[0]) == (JobState.QUEUED, 1, HUNG)
    assert "replaced" in bench.warnings(job)["STALLED"]


def test_worker_whose_gpu_has_no_kernel_of_a_fixed_order_goes_on_without(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_no_order(*given: Any) -> torch.Tensor:
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))  # has one order only by chance, and torch says so
        return loss_per_sample(*given)

    monkeypatch.setattr("services.trainer.train.loss_per_sample", of_no_order)
    choose_kernels()
    try:
        waiting = bench.run(CONFIG)
        assert (waiting.state, waiting.lost) == (JobState.QUEUED, 1)
        assert bench.run_next().state is JobState.SUCCEEDED
    finally:
        choose_kernels()


def test_full_worker_makes_room_for_a_user_who_has_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.trainer.worker.LOOK_S", 0.0)
    long = [create(bench, LONG.model_copy(update={"steps": 5000}), "big") for _ in range(2)]
    thread, stop = working(bench, active_jobs=2)
    try:
        for job in long:
            until(bench, job, lambda found: found.step > 0)
        short = until(bench, create(bench, CONFIG, "small"), lambda found: found.state.ended)
        assert short.state is JobState.SUCCEEDED
        waiting = until(bench, long[0], lambda found: found.state is JobState.RUNNING and found.attempt == 1)
        assert waiting.checkpoint_step > 0
    finally:
        stop.set()
        thread.join()
