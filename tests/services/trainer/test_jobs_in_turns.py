"""Jobs that take turns on one worker: each makes what it makes alone, and none waits for another's end."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from services.trainer.config import TrainConfig
from services.trainer.config.choices import AdapterType, InitWeights, Optimizer
from services.trainer.flow_matching import loss_per_sample
from services.trainer.jobs import Job, JobState
from tests.services.trainer import disturbed
from tests.services.trainer.disturbed import LONG, PATIENCE_S, Alone, create, digest, until, working
from tests.services.trainer.test_run_job import CONFIG, Bench

bench, refusing_server = disturbed.bench, disturbed.refusing_server  # fixtures are found by these names
transformer, known, alone = disturbed.transformer, disturbed.known, disturbed.alone


KINDS = [
    LONG.model_copy(update={"ema_decay": 0.9, "adapter_dropout": 0.2}),
    LONG.model_copy(update={"optimizer": Optimizer.ADAMW_8BIT, "adapter_type": AdapterType.LOKR, "seed": 4}),
    LONG.model_copy(update={"init_weights": InitWeights.PISSA, "gradient_checkpointing": True, "steps": 6}),
]


def run_together(bench: Bench, configs: Sequence[TrainConfig], monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Run jobs in turns of about a step, none of which takes its first step before all are under way."""
    all_there = threading.Event()

    def once_all_are_there(*arguments: Any) -> Tensor:
        assert all_there.wait(PATIENCE_S)
        return loss_per_sample(*arguments)

    monkeypatch.setattr("services.trainer.train.loss_per_sample", once_all_are_there)
    jobs = [create(bench, config, f"user {number}") for number, config in enumerate(configs)]
    thread, stop = working(bench, active_jobs=len(configs), slice_s=0.01, max_attempts=1)
    try:
        for job in jobs:
            until(bench, job, lambda found: found.state is JobState.RUNNING)
        all_there.set()
        return [until(bench, job, lambda found: found.state.ended) for job in jobs]
    finally:
        all_there.set()
        stop.set()
        thread.join()


def first_to_step(bench: Bench, jobs: Sequence[Job]) -> Job:
    """Wait until one of the jobs has done a step; return it."""
    found: list[Job] = []

    def any_has_begun(_: Job) -> bool:
        found.extend(job for job in jobs if bench.jobs.get(bench.tenant, job.job_id).step)
        return bool(found)

    until(bench, jobs[0], any_has_begun)
    return found[0]


def test_jobs_that_take_turns_make_what_each_makes_alone(
    bench: Bench, alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: tensor.clone() for name, tensor in bench.place.base.transformer.state_dict().items()}
    undisturbed = [alone(config) for config in KINDS]
    together = run_together(bench, KINDS, monkeypatch)
    assert [digest(bench, job) for job in together] == [made.digest for made in undisturbed]
    assert [digest(bench, job, "lora-best.safetensors") for job in together] == [made.best for made in undisturbed]
    measured = [(made.result.held_out_loss_base, made.result.held_out_loss_lora) for made in undisturbed]
    results = [job.result for job in together if job.result]
    assert [(result.held_out_loss_base, result.held_out_loss_lora) for result in results] == measured
    after = bench.place.base.transformer.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_short_job_behind_a_long_one_gets_its_first_step_before_that_ends(bench: Bench) -> None:
    long = create(bench, LONG.model_copy(update={"steps": 5000}), "one")
    thread, stop = working(bench, active_jobs=2, slice_s=0.2)
    try:
        until(bench, long, lambda found: found.step > 0)
        short = until(bench, create(bench, CONFIG, "other"), lambda found: found.state.ended)
        assert short.state is JobState.SUCCEEDED
        assert bench.jobs.get(bench.tenant, long.job_id).state is JobState.RUNNING
    finally:
        stop.set()
        thread.join()
    waiting = bench.jobs.get(bench.tenant, long.job_id)
    assert (waiting.state, waiting.checkpoint_step) == (JobState.QUEUED, waiting.step)
    assert waiting.step > 0


def test_job_that_waits_its_turn_is_cancelled_and_paused_without_waiting_for_the_others_end(bench: Bench) -> None:
    jobs = [create(bench, LONG.model_copy(update={"steps": 5000}), f"user {number}") for number in range(3)]
    thread, stop = working(bench, active_jobs=3, slice_s=3600.0)
    try:
        for job in jobs:
            until(bench, job, lambda found: found.state is JobState.RUNNING)
        # Whichever thread is ready first has the base: the others wait for an hour.
        first = first_to_step(bench, jobs)
        cancelled, paused = (job for job in jobs if job is not first)
        bench.jobs.cancel(bench.tenant, cancelled.job_id)
        bench.jobs.pause(bench.tenant, paused.job_id)
        until(bench, cancelled, lambda found: found.state is JobState.CANCELLED)
        until(bench, paused, lambda found: found.state is JobState.PAUSED)
        assert bench.jobs.get(bench.tenant, first.job_id).state is JobState.RUNNING
    finally:
        stop.set()
        thread.join()
