"""However a job ends, what it learnt and measured is there; what goes wrong late costs nothing that was right."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

import pytest
from diffusers import FluxTransformer2DModel

from services.common.errors import Unavailable
from services.trainer import run_job
from services.trainer.adapters.adapter import attached
from services.trainer.adapters.files import AdapterSnapshot, DtypeTooSmall, peft_file
from services.trainer.config import TrainConfig
from services.trainer.data.job_data import Data
from services.trainer.jobs import JobState, NewJob, StepsCompleted
from services.trainer.train import Training
from tests.services.trainer import test_run_job
from tests.services.trainer.conftest import random_batch
from tests.services.trainer.database.test_job_store import take
from tests.services.trainer.test_run_job import CONFIG, Bench

bench, refusing_server = test_run_job.bench, test_run_job.refusing_server


def wait_for_step(bench: Bench, job_id: str, step: int) -> None:
    """Wait until so many steps are told."""
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        told = [one.event for one in bench.jobs.events_after(job_id, 0, limit=1000)]
        if any(event.steps[-1].step >= step for event in told if isinstance(event, StepsCompleted)):
            return
        time.sleep(0.05)
    pytest.fail("no such step")


def test_cancelled_job_publishes_what_it_has_learnt_and_measured(bench: Bench) -> None:
    config = CONFIG.model_copy(update={"steps": 2000, "validation_interval_steps": 1000})
    bench.jobs.create(bench.tenant, NewJob(dataset=bench.reference, held_out=bench.reference, config=config))
    job = take(bench.jobs)
    running = threading.Thread(target=bench.worker.run_one, args=(job,))
    running.start()
    wait_for_step(bench, job.job_id, 3)
    bench.jobs.cancel(bench.tenant, job.job_id)
    running.join(60)
    assert bench.jobs.get(bench.tenant, job.job_id).state is JobState.CANCELLED
    names = {"lora-best.safetensors", "lora-best.kohya.safetensors", "metrics.csv", "report.html"}
    assert set(bench.jobs.artifacts(job.job_id)) == names | {f"events.out.tfevents.{job.job_id}"}
    assert b"cancelled" in bench.file(job, "report.html").lower()


@pytest.mark.parametrize("form", ["kohya", "comfyui"])
def test_form_that_does_not_fit_keeps_nothing_else_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    def too_small(*_: object) -> bytes:
        raise DtypeTooSmall("lora_up has 7e+04, and FP16 ends at 6.55e+04")

    monkeypatch.setattr(run_job, f"{form}_file", too_small)
    job = bench.run(CONFIG)
    assert job.state is JobState.SUCCEEDED
    assert {"lora.safetensors", "lora-best.safetensors", "report.html"} <= set(bench.jobs.artifacts(job.job_id))
    assert "FP16 ends" in bench.warnings(job)[f"{form.upper()}_SKIPPED"]


def test_lora_that_does_not_fit_fails_with_the_remedy_and_a_report(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_small(adapter: AdapterSnapshot, config: TrainConfig, provenance: Mapping[str, str]) -> bytes:
        peft_file(adapter, config, provenance)
        raise DtypeTooSmall("lora_B has 7e+04, and FP16 ends at 6.55e+04")

    monkeypatch.setattr(run_job, "peft_file", too_small)
    job = bench.run(CONFIG)
    assert job.failure
    assert (job.failure.reason, job.failure.remedy) == ("FILE_DTYPE_TOO_SMALL", "Set file_dtype to BF16 or FP32.")
    assert {"metrics.csv", "report.html"} <= set(bench.jobs.artifacts(job.job_id))
    assert "BEST_SKIPPED" in bench.warnings(job)


def test_encoding_that_stalls_at_the_end_is_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    known = Data.provenance
    calls = iter([True, True, False])

    def stalling(data: Data) -> dict[str, str]:
        if next(calls):
            raise Unavailable("no sample has been encoded for 120 s", reason="ENCODING_STALLED", remedy="Wait.")
        return known(data)

    monkeypatch.setattr(Data, "provenance", stalling)
    job = bench.run(CONFIG, held_out=False)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)


def test_step_is_left_before_its_next_batch(transformer: FluxTransformer2DModel) -> None:
    seen = iter(range(3))

    def before_batch() -> None:
        if next(seen) == 2:
            raise InterruptedError

    with attached(transformer, CONFIG):
        training = Training(transformer, CONFIG, 4, before_batch)
        with pytest.raises(InterruptedError):
            training.step([random_batch(1)] * 1024)


def test_epochs_end_with_the_run(bench: Bench) -> None:
    config = CONFIG.model_copy(update={"steps": None, "epochs": 1, "gradient_accumulation_steps": 1024})
    begin_s = time.monotonic()
    job = bench.run(config, held_out=False)
    assert (job.state, job.step) == (JobState.SUCCEEDED, 1)
    assert time.monotonic() - begin_s < 30  # of 1024 batches it would be minutes
