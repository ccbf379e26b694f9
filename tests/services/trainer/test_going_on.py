"""Jobs that are paused, stopped or lost: they go on from their checkpoints, and nobody can tell."""

from __future__ import annotations

import gc
import itertools
import re
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor, nn

from services.common.errors import Unavailable
from services.trainer.adapters.adapter import adapter_parameters
from services.trainer.checkpoints.sets import write_set
from services.trainer.config import TrainConfig
from services.trainer.config.choices import AdapterType, InitWeights, Optimizer
from services.trainer.database.claims import LostJob
from services.trainer.flow_matching import loss_per_sample
from services.trainer.jobs import (
    Checkpoint,
    CheckpointWritten,
    Job,
    JobState,
    StateChanged,
)
from services.trainer.results.job_files import job_prefix
from services.trainer.worker import Worker
from tests.services.trainer import disturbed
from tests.services.trainer.database.test_job_store import take
from tests.services.trainer.disturbed import LONG, Alone, create, digest, hearing, steps_of, stop_after
from tests.services.trainer.test_run_job import Bench

bench, refusing_server = disturbed.bench, disturbed.refusing_server  # fixtures are found by these names
transformer, known, alone = disturbed.transformer, disturbed.known, disturbed.alone


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
    bench: Bench, alone: Alone, monkeypatch: pytest.MonkeyPatch, changed: dict[str, object]
) -> None:
    config = TrainConfig.model_validate({**LONG.model_dump(exclude={"learning_rate"}), **changed})
    undisturbed = alone(config)
    with monkeypatch.context() as patched:
        stop_after(bench, 5 * config.gradient_accumulation_steps, bench.stop.set, patched)
        stopped = bench.run(config)
    assert (stopped.state, stopped.attempt) == (JobState.QUEUED, 0)
    assert stopped.checkpoint_step in {5, 6}  # within one step, where it has several batches before its end
    bench.stop.clear()
    finished = bench.run_next()
    assert digest(bench, finished) == undisturbed.digest
    assert finished.result
    assert finished.result.held_out_loss_best == undisturbed.result.held_out_loss_best
    assert finished.result.held_out_loss_zero == undisturbed.result.held_out_loss_zero
    assert steps_of(bench, finished) == list(range(1, 10))
    assert digest(bench, finished, "lora-best.safetensors") == undisturbed.best


def test_yardstick_is_measured_once_and_goes_with_the_checkpoint(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = iter([2.5])  # asked twice, it would have nothing to say
    monkeypatch.setattr("services.trainer.run_job.zero_loss", lambda *_: next(measured))
    with monkeypatch.context() as patched:
        stop_after(bench, 5, bench.stop.set, patched)
        bench.run(LONG)
    bench.stop.clear()
    finished = bench.run_next()
    assert finished.result
    assert finished.result.held_out_loss_zero == 2.5
    rows = bench.file(finished, "metrics.csv").decode().splitlines()
    assert {row.rpartition(",")[2] for row in rows[1:]} == {"2.5", ""}


def test_paused_job_waits_with_a_checkpoint_and_is_resumed_to_the_same_bits(
    bench: Bench, alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = alone(LONG)
    job = create(bench, LONG)
    with monkeypatch.context() as patched:
        stop_after(bench, 4, lambda: bench.jobs.pause(bench.tenant, job.job_id), patched)
        paused = bench.run_next()
    assert (paused.state, paused.step, paused.checkpoint_step) == (JobState.PAUSED, 5, 5)
    assert bench.jobs.claims.claim("w", lease_s=60, max_attempts=3) is None
    assert bench.jobs.resume(bench.tenant, job.job_id).state is JobState.QUEUED
    finished = bench.run_next()
    assert digest(bench, finished) == undisturbed.digest
    assert [event.message for event in bench.events(finished) if isinstance(event, StateChanged)].count(
        "goes on after step 5"
    ) == 1


def test_job_paused_while_it_is_measured_is_measured_again_and_nothing_else_changes(
    bench: Bench, alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = alone(LONG)
    job = create(bench, LONG)
    with monkeypatch.context() as patched:
        measured, hear = itertools.count(), hearing(bench, patched)

        def counted(*arguments: Any) -> Tensor:
            if next(measured) == 20:  # in the second measurement
                bench.jobs.pause(bench.tenant, job.job_id)
                hear()
            return loss_per_sample(*arguments)

        patched.setattr("services.trainer.validation.loss_per_sample", counted)
        paused = bench.run_next()
    assert paused.state is JobState.PAUSED
    bench.jobs.resume(bench.tenant, job.job_id)
    finished = bench.run_next()
    assert digest(bench, finished) == undisturbed.digest
    assert finished.result
    assert finished.result.held_out_loss_lora == undisturbed.result.held_out_loss_lora
    assert bench.file(finished, "metrics.csv").count(b"\n") == undisturbed.measured


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


@pytest.mark.parametrize(
    ("asked", "stay"),
    [
        ({"checkpoint_interval_steps": 3, "checkpoints_kept": 10}, [6, 3]),
        ({"checkpoint_interval_steps": 2}, [8, 6]),
        ({"checkpoint_interval_steps": 1, "checkpoints_kept": 1, "checkpoint_keep_interval_steps": 4}, [8, 4]),
        ({"checkpoint_interval_steps": 1, "checkpoints_kept": 3, "checkpoint_keep_interval_steps": 4}, [8, 7, 6, 4]),
    ],
)
def test_checkpoints_that_were_asked_for_stay_with_their_loras(
    bench: Bench, asked: dict[str, int], stay: list[int]
) -> None:
    job = bench.run(LONG.model_copy(update=asked))
    assert [each.step for each in bench.jobs.checkpoints(bench.tenant, job.job_id)] == stay
    keys = bench.objects.keys(f"{job_prefix(bench.tenant, job.job_id)}checkpoints/")
    assert {key.split("/")[-2] for key in keys} == {f"{step:06}-1" for step in stay}
    loras = {f"checkpoints/{step:06}-1/lora.safetensors" for step in stay}
    assert job.result
    assert {each.artifact_name for each in job.result.artifacts if "checkpoints/" in each.artifact_name} == loras
    assert all(bench.file(job, name) for name in loras)
    report = bench.file(job, "report.html").decode()
    assert set(re.findall(r'href="\./(checkpoints/[^"]+)"', report)) == loras
    written = {event.checkpoint.step for event in bench.events(job) if isinstance(event, CheckpointWritten)}
    assert bench.jobs.removed_checkpoints(job.job_id) == sorted(written - set(stay))
    assert job.checkpoint_step == stay[0]


def test_checkpoints_that_nobody_asked_for_go_with_success_and_are_told_as_removed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = create(bench, LONG)
    with monkeypatch.context() as patched:
        stop_after(bench, 3, lambda: bench.jobs.pause(bench.tenant, job.job_id), patched)
        bench.run_next()
    (written,) = bench.jobs.checkpoints(bench.tenant, job.job_id)
    bench.jobs.resume(bench.tenant, job.job_id)
    finished = bench.run_next()
    assert finished.state is JobState.SUCCEEDED
    assert not bench.jobs.checkpoints(bench.tenant, job.job_id)
    assert bench.jobs.removed_checkpoints(job.job_id) == [written.step]
    assert not list(bench.objects.keys(f"{job_prefix(bench.tenant, job.job_id)}checkpoints/"))


@pytest.mark.parametrize(("changes", "warned"), [({}, True), ({"checkpoints_kept": 2}, False), ({"steps": 6}, False)])
def test_job_says_at_its_start_that_older_checkpoints_will_go(
    bench: Bench, changes: dict[str, int], warned: bool
) -> None:
    warnings = bench.warnings(bench.run(LONG.model_copy(update={"checkpoint_interval_steps": 2, **changes})))
    assert ("CHECKPOINTS_THINNED" in warnings) is warned
    assert not warned or "every 2 steps 4 checkpoints are written" in warnings["CHECKPOINTS_THINNED"]


def test_checkpoint_on_demand_is_written_after_the_step_under_way(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = create(bench, LONG)
    stop_after(bench, 4, lambda: bench.jobs.request_checkpoint(bench.tenant, job.job_id), monkeypatch)
    finished = bench.run_next()
    written = [event.checkpoint.step for event in bench.events(finished) if isinstance(event, CheckpointWritten)]
    assert written == [5]
    assert finished.state is JobState.SUCCEEDED
    assert [each.step for each in bench.jobs.checkpoints(bench.tenant, job.job_id)] == [5]  # it was asked for


def test_damaged_newest_checkpoint_is_passed_over_for_the_one_before(
    bench: Bench, alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = LONG.model_copy(update={"checkpoint_interval_steps": 3})
    undisturbed = alone(config)
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
    assert digest(bench, finished) == undisturbed.digest
    assert steps_of(bench, finished) == [*range(1, 9), *range(7, 10)]


def test_worker_that_lost_its_job_writes_nothing_more(
    bench: Bench, alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = alone(LONG)
    job = create(bench, LONG)
    held = take(bench.jobs)

    def lose() -> None:
        taken = None
        while not taken:  # a heartbeat in between renews the lease
            with bench.jobs._database.writing() as connection:  # the lease runs out, and another worker takes the job
                connection.exec_driver_sql("UPDATE jobs SET lease_until_s = 0")
            taken = bench.jobs.claims.claim("other", lease_s=60, max_attempts=3)

    with monkeypatch.context() as patched:
        stop_after(bench, 4, lose, patched)
        with pytest.raises(LostJob):
            bench.worker.run_one(held)
    before = bench.jobs.get(bench.tenant, job.job_id)
    assert (before.state, before.epoch, before.checkpoint_step) == (JobState.RUNNING, 2, 0)
    bench.worker.run_one(before)
    assert digest(bench, bench.jobs.get(bench.tenant, job.job_id)) == undisturbed.digest


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


def test_job_whose_checkpoint_is_of_another_base_waits_for_its_own(
    bench: Bench, alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = alone(LONG)
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
    assert digest(bench, bench.run_next()) == undisturbed.digest
