"""Jobs that are paused, stopped, lost or take turns: they go on from their checkpoints, and nobody can tell."""

from __future__ import annotations

import gc
import itertools
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from services.common.errors import Unavailable
from services.trainer.adapters.adapter import adapter_parameters
from services.trainer.checkpoints.sets import write_set
from services.trainer.config import TrainConfig
from services.trainer.config.choices import AdapterType, InitWeights, Optimizer
from services.trainer.database.claims import LostJob
from services.trainer.flow_matching import loss_per_sample
from services.trainer.jobs import Checkpoint, CheckpointWritten, Job, JobState, NewJob, StateChanged, StepsCompleted
from services.trainer.results.job_files import job_prefix
from services.trainer.settings import TrainerSettings
from services.trainer.worker import HUNG, Worker
from tests.services.trainer import test_run_job
from tests.services.trainer.database.test_job_store import take
from tests.services.trainer.test_run_job import CONFIG, Bench

bench, refusing_server = test_run_job.bench, test_run_job.refusing_server  # fixtures are found by these names
LONG = CONFIG.model_copy(update={"steps": 12, "validation_interval_steps": 3})
PATIENCE_S = 60.0


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


def digest(job: Job) -> str:
    """Of the LoRA that a job has made."""
    assert job.result, job
    return job.result.lora.content_digest


def stop_after(bench: Bench, steps: int, act: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something in the middle of the first batch of step `steps` + 1."""
    taken = itertools.count()

    def counted(*arguments: Any) -> Tensor:
        if next(taken) == steps:
            act()
            time.sleep(0.2)  # ten heartbeats
        return loss_per_sample(*arguments)

    monkeypatch.setattr("services.trainer.train.loss_per_sample", counted)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"optimizer": Optimizer.ADAMW_8BIT, "ema_decay": 0.9},
        {"optimizer": Optimizer.PRODIGY, "learning_rate": 1.0, "adapter_dropout": 0.2},
        {"gradient_accumulation_steps": 3, "caption_dropout": 0.3, "adapter_type": AdapterType.DORA},
        {"init_weights": InitWeights.PISSA, "ema_decay": 0.5},
    ],
    ids=str,
)
def test_stopped_job_goes_on_to_the_same_bits(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, changed: dict[str, object]
) -> None:
    config = TrainConfig.model_validate({**LONG.model_dump(exclude={"learning_rate"}), **changed})
    undisturbed = bench.run(config)
    with monkeypatch.context() as patched:
        stop_after(bench, 5 * config.gradient_accumulation_steps, bench.stop.set, patched)
        stopped = bench.run(config)
    assert (stopped.state, stopped.attempt) == (JobState.QUEUED, 0)
    assert stopped.checkpoint_step in {5, 6}  # within one step, where it has several batches before its end
    bench.stop.clear()
    finished = bench.run_next()
    assert digest(finished) == digest(undisturbed)
    assert finished.result
    assert undisturbed.result
    assert finished.result.held_out_loss_best == undisturbed.result.held_out_loss_best
    assert steps_of(bench, finished) == list(range(1, 13))
    assert bench.file(finished, "lora-best.safetensors") == bench.file(undisturbed, "lora-best.safetensors")


def test_paused_job_waits_with_a_checkpoint_and_is_resumed_to_the_same_bits(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = bench.run(LONG)
    job = create(bench, LONG)
    with monkeypatch.context() as patched:
        stop_after(bench, 4, lambda: bench.jobs.pause(bench.tenant, job.job_id), patched)
        paused = bench.run_next()
    assert (paused.state, paused.step, paused.checkpoint_step) == (JobState.PAUSED, 5, 5)
    assert bench.jobs.claims.claim("w", lease_s=60, max_attempts=3) is None
    assert bench.jobs.resume(bench.tenant, job.job_id).state is JobState.QUEUED
    finished = bench.run_next()
    assert digest(finished) == digest(undisturbed)
    assert [event.message for event in bench.events(finished) if isinstance(event, StateChanged)].count(
        "goes on after step 5"
    ) == 1


def test_job_paused_while_it_is_measured_is_measured_again_and_nothing_else_changes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = bench.run(LONG)
    job = create(bench, LONG)
    with monkeypatch.context() as patched:
        measured = itertools.count()

        def counted(*arguments: Any) -> Tensor:
            if next(measured) == 20:  # in the second measurement
                bench.jobs.pause(bench.tenant, job.job_id)
                time.sleep(0.2)
            return loss_per_sample(*arguments)

        patched.setattr("services.trainer.validation.loss_per_sample", counted)
        paused = bench.run_next()
    assert paused.state is JobState.PAUSED
    bench.jobs.resume(bench.tenant, job.job_id)
    finished = bench.run_next()
    assert digest(finished) == digest(undisturbed)
    assert finished.result
    assert undisturbed.result
    assert finished.result.held_out_loss_lora == undisturbed.result.held_out_loss_lora
    assert bench.file(finished, "metrics.csv").count(b"\n") == bench.file(undisturbed, "metrics.csv").count(b"\n")


def test_paused_and_cancelled_jobs_leave_nothing_in_memory(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[weakref.ref[nn.Parameter]] = []
    for act in (bench.jobs.pause, bench.jobs.cancel):
        job = create(bench, LONG)

        def ask(job: Job = job, act: Callable[..., Job] = act) -> None:
            parameters = adapter_parameters(bench.place.base.transformer)
            kept.extend(weakref.ref(parameter) for parameter in parameters.values())
            act(bench.tenant, job.job_id)

        with monkeypatch.context() as patched:
            stop_after(bench, 2, ask, patched)
            bench.run_next()
    gc.collect()
    assert len(kept) > 20
    assert [one for one in kept if one() is not None] == []


def test_cancelled_job_keeps_its_checkpoints_unless_told_otherwise(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []
    for discard in (False, True):
        job = create(bench, LONG.model_copy(update={"checkpoint_interval_steps": 2}))
        with monkeypatch.context() as patched:
            ask = lambda job=job, discard=discard: bench.jobs.cancel(  # noqa: E731 - bound to this round
                bench.tenant, job.job_id, discard_checkpoints=discard
            )
            stop_after(bench, 5, ask, patched)
            cancelled = bench.run_next()
        assert cancelled.state is JobState.CANCELLED
        keys = list(bench.objects.keys(f"{job_prefix(bench.tenant, job.job_id)}checkpoints/"))
        kept.append((len(bench.jobs.checkpoints(bench.tenant, job.job_id)), bool(keys)))
    assert kept == [(2, True), (0, False)]


def test_finished_job_keeps_only_the_checkpoints_it_was_asked_to_keep(bench: Bench) -> None:
    asked = {"checkpoint_interval_steps": 1, "checkpoints_kept": 3, "checkpoint_keep_interval_steps": 5}
    job = bench.run(LONG.model_copy(update=asked))
    written = [event.checkpoint.step for event in bench.events(job) if isinstance(event, CheckpointWritten)]
    assert written == list(range(1, 12))
    assert [each.step for each in bench.jobs.checkpoints(bench.tenant, job.job_id)] == [10, 5]
    keys = bench.objects.keys(f"{job_prefix(bench.tenant, job.job_id)}checkpoints/")
    assert {key.split("/")[-2] for key in keys} == {"000005-1", "000010-1"}


def test_checkpoint_on_demand_is_written_after_the_step_under_way(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = create(bench, LONG)
    stop_after(bench, 4, lambda: bench.jobs.request_checkpoint(bench.tenant, job.job_id), monkeypatch)
    finished = bench.run_next()
    written = [event.checkpoint.step for event in bench.events(finished) if isinstance(event, CheckpointWritten)]
    assert written == [5]


def test_damaged_newest_checkpoint_is_passed_over_for_the_one_before(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = LONG.model_copy(update={"checkpoint_interval_steps": 3})
    undisturbed = bench.run(config)
    with monkeypatch.context() as patched:
        stop_after(bench, 7, bench.stop.set, patched)
        job = bench.run(config)
    newest = bench.jobs.checkpoints(bench.tenant, job.job_id)[0]
    assert newest.step == 8
    key = (bench.objects.key_of(newest.uri) or "").replace("manifest.json", "adapter.safetensors")
    data = bytearray(bench.objects.get(key))
    data[-1] ^= 1
    bench.objects.put(key, bytes(data))
    bench.stop.clear()
    finished = bench.run_next()
    assert "000008-1" in bench.warnings(finished)["CHECKPOINT_SKIPPED"]
    assert digest(finished) == digest(undisturbed)
    assert steps_of(bench, finished) == [*range(1, 9), *range(7, 13)]


def test_worker_that_lost_its_job_writes_nothing_more(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = bench.run(LONG)
    job = create(bench, LONG)
    held = take(bench.jobs)

    def lose() -> None:
        with bench.jobs._database.writing() as connection:  # the lease runs out, and another worker takes the job
            connection.exec_driver_sql("UPDATE jobs SET lease_until_s = 0")
        assert bench.jobs.claims.claim("other", lease_s=60, max_attempts=3)

    with monkeypatch.context() as patched:
        stop_after(bench, 4, lose, patched)
        with pytest.raises(LostJob):
            bench.worker.run_one(held)
    before = bench.jobs.get(bench.tenant, job.job_id)
    assert (before.state, before.epoch, before.checkpoint_step) == (JobState.RUNNING, 2, 0)
    bench.worker.run_one(before)
    assert digest(bench.jobs.get(bench.tenant, job.job_id)) == digest(undisturbed)


KINDS = [
    LONG.model_copy(update={"ema_decay": 0.9, "adapter_dropout": 0.2}),
    LONG.model_copy(update={"optimizer": Optimizer.ADAMW_8BIT, "adapter_type": AdapterType.LOKR, "seed": 4}),
    LONG.model_copy(update={"init_weights": InitWeights.PISSA, "gradient_checkpointing": True, "steps": 6}),
]


def test_jobs_that_take_turns_make_what_each_makes_alone(bench: Bench) -> None:
    before = {name: tensor.clone() for name, tensor in bench.place.base.transformer.state_dict().items()}
    alone = [digest(bench.run(config)) for config in KINDS]
    jobs = [create(bench, config, f"user {number}") for number, config in enumerate(KINDS)]
    thread, stop = working(bench, active_jobs=3, slice_s=0.1, max_attempts=1)
    try:
        together = [until(bench, job, lambda found: found.state.ended) for job in jobs]
    finally:
        stop.set()
        thread.join()
    assert [digest(job) for job in together] == alone
    starts = [job.start_time_s or 0.0 for job in together]
    ends = [job.end_time_s or 0.0 for job in together]
    assert max(starts) < min(ends)  # they were under way at the same time
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
        until(bench, jobs[0], lambda found: found.step > 0)
        bench.jobs.cancel(bench.tenant, jobs[1].job_id)
        bench.jobs.pause(bench.tenant, jobs[2].job_id)
        until(bench, jobs[1], lambda found: found.state is JobState.CANCELLED)
        until(bench, jobs[2], lambda found: found.state is JobState.PAUSED)
        assert bench.jobs.get(bench.tenant, jobs[0].job_id).state is JobState.RUNNING
    finally:
        stop.set()
        thread.join()


def test_write_that_the_store_refuses_is_tried_until_it_serves(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = itertools.count(1)

    def refusing(*arguments: Any) -> Checkpoint:
        if next(refused) < 3:
            raise Unavailable("no", reason="STORE_UNAVAILABLE", remedy="wait")
        return write_set(*arguments)

    monkeypatch.setattr("services.trainer.checkpoints.checkpoints.write_set", refusing)
    job = bench.run(LONG.model_copy(update={"checkpoint_interval_steps": 7}))
    assert job.state is JobState.SUCCEEDED
    assert next(refused) == 4


def test_job_that_may_kill_workers_runs_alone_and_others_make_room(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.trainer.worker.SUSPECT_S", 0.0)
    undisturbed = bench.run(LONG)
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
    assert digest(bench.run(LONG)) == digest(undisturbed)


def test_step_that_hangs_is_told_and_ends_its_worker(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr("services.trainer.worker.os._exit", ended.append)
    settings = bench.place.settings.model_copy(update={"stall_s": 1.0})
    job = create(bench, LONG)
    stop_after(bench, 3, lambda: time.sleep(2.0), monkeypatch)
    with pytest.raises(LostJob):
        Worker(replace(bench.place, settings=settings), bench.stop).run_one(take(bench.jobs))
    found = bench.jobs.get(bench.tenant, job.job_id)
    assert (found.state, found.lost, ended[0]) == (JobState.QUEUED, 1, HUNG)
    assert "replaced" in bench.warnings(job)["STALLED"]


def test_job_whose_checkpoint_is_of_another_base_waits_for_its_own(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = bench.run(LONG)
    with monkeypatch.context() as patched:
        stop_after(bench, 5, bench.stop.set, patched)
        job = bench.run(LONG)
    bench.stop.clear()
    own = bench.worker
    bench.worker = Worker(replace(bench.place, base=replace(bench.place.base, fingerprint="other")), bench.stop)
    waiting = bench.run_next()
    assert (waiting.state, waiting.checkpoint_step) == (JobState.PAUSED, job.checkpoint_step)
    bench.worker = own
    bench.jobs.resume(bench.tenant, job.job_id)
    assert digest(bench.run_next()) == digest(undisturbed)
