"""Jobs that somebody disturbs, and what they make undisturbed, for tests."""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from services.trainer.config import TrainConfig
from services.trainer.flow_matching import loss_per_sample
from services.trainer.jobs import (
    Job,
    NewJob,
    Orders,
    StepsCompleted,
    TrainingResult,
)
from services.trainer.settings import TrainerSettings
from services.trainer.transformer import prepared
from services.trainer.worker import Worker
from tests.services.trainer import test_run_job
from tests.services.trainer.test_run_job import CONFIG, Bench

bench, refusing_server = test_run_job.bench, test_run_job.refusing_server  # fixtures are found by these names
LONG = CONFIG.model_copy(update={"steps": 9, "validation_interval_steps": 3})
PATIENCE_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a job has made: its result, digests of the tensors in its files, and how many lines its metrics have."""

    result: TrainingResult
    digest: str
    best: str
    measured: int


Alone = Callable[[TrainConfig], Made]


@pytest.fixture(scope="module")
def transformer(transformer: FluxTransformer2DModel) -> FluxTransformer2DModel:
    """A base of random weights with a block of each kind: what is shown here depends on no weight."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        small = {**transformer.config, "num_layers": 1, "num_single_layers": 1}
        random = FluxTransformer2DModel.from_config(small)
        return prepared(random.to(device=transformer.device, dtype=transformer.dtype))


@pytest.fixture(scope="module")
def known() -> dict[str, Made]:
    """Undisturbed runs by configuration: each is run once for all tests."""
    return {}


@pytest.fixture
def alone(bench: Bench, known: dict[str, Made]) -> Alone:
    """What a job makes that nobody disturbs and that is alone on its base."""

    def run(config: TrainConfig) -> Made:
        name = config.model_dump_json()
        if name not in known:
            job = bench.run(config)
            assert job.result, job
            known[name] = Made(
                result=job.result,
                digest=digest(bench, job),
                best=digest(bench, job, "lora-best.safetensors"),
                measured=bench.file(job, "metrics.csv").count(b"\n"),
            )
        return known[name]

    return run


def create(bench: Bench, config: TrainConfig, user_id: str = "") -> Job:
    """A queued job."""
    new = NewJob(user_id=user_id, dataset=bench.reference, held_out=bench.held_out, config=config)
    return bench.jobs.create(bench.tenant, new)


def working(bench: Bench, **settings: object) -> tuple[threading.Thread, threading.Event]:
    """A worker at work in a thread of its own, and what stops it."""
    stop = threading.Event()
    asked = {**bench.place.settings.model_dump(), "retry_delay_s": 0.0, **settings}
    place = replace(bench.place, settings=TrainerSettings.model_validate(asked))
    thread = threading.Thread(target=Worker(place, stop).run)
    thread.start()
    return thread, stop


def until(bench: Bench, job: Job, reached: Callable[[Job], bool]) -> Job:
    """Wait until the job is as wanted."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not reached(found := bench.jobs.get(bench.tenant, job.job_id)):
        assert time.monotonic() < deadline_s, found
        time.sleep(0.01)
    return found


def steps_of(bench: Bench, job: Job) -> list[int]:
    """The steps that a job's events tell of."""
    events = bench.events(job)
    return [step.step for event in events if isinstance(event, StepsCompleted) for step in event.steps]


def digest(bench: Bench, job: Job, name: str = "lora.safetensors") -> str:
    """Of the tensors in a file that a job has made; its header names the dataset, which each test has its own of."""
    assert job.result, job
    data = bench.file(job, name)
    header_bytes = int.from_bytes(data[:8], "little")
    return hashlib.sha256(data[8 + header_bytes :]).hexdigest()


def hearing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """What waits until the job that runs has heard what is wanted of it by now: two whole heartbeats, or its loss."""
    heartbeat, beats = bench.jobs.claims.heartbeat, itertools.count(1)
    last = 0

    def counted(*arguments: Any, **named: Any) -> Orders:
        nonlocal last
        try:
            return heartbeat(*arguments, **named)
        finally:
            last = next(beats)

    def wait() -> None:
        deadline_s, heard = time.monotonic() + PATIENCE_S, last + 3  # the first may be under way already
        while last < heard and any(thread.name == "heartbeat" for thread in threading.enumerate()):
            assert time.monotonic() < deadline_s
            time.sleep(0.005)

    monkeypatch.setattr(bench.jobs.claims, "heartbeat", counted)
    return wait


def stop_after(bench: Bench, steps: int, act: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something in the middle of the first batch of step `steps` + 1."""
    taken, hear = itertools.count(), hearing(bench, monkeypatch)

    def counted(*arguments: Any) -> Tensor:
        if next(taken) == steps:
            act()
            hear()
        return loss_per_sample(*arguments)

    monkeypatch.setattr("services.trainer.train.loss_per_sample", counted)
