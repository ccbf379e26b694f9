"""Which weights are in the files that a job publishes: those of its end, and those that were measured best."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load

from services.common import cache
from services.common.cache import CachedObject, CachedVariant
from services.trainer.config import TrainConfig
from services.trainer.config.choices import AdapterType
from services.trainer.jobs import Job, JobState, JobWarning, NewJob, TrainingResult, ValidationCompleted
from services.trainer.results import records
from tests.services.trainer import test_run_job
from tests.services.trainer.disturbed import digest, stop_after
from tests.services.trainer.test_run_job import CONFIG, Bench

bench, refusing_server = test_run_job.bench, test_run_job.refusing_server  # fixtures are found by these names

OVERFITTING = CONFIG.model_copy(update={"steps": 5, "learning_rate": 0.03, "validation_interval_steps": 1})


def overfitted(bench: Bench, config: TrainConfig = OVERFITTING) -> tuple[Job, TrainingResult]:
    """A job that trains on latents far from those it is measured on: its held-out loss falls, then rises steeply."""
    bench.measure_on(bench.manifest.model_copy(update={"latent_scale": 0.0, "samples": bench.manifest.samples[:1]}))
    measured = bench.held_out
    bench.publish(bench.manifest.model_copy(update={"latent_shift": 5.0}))
    bench.held_out = measured
    job = bench.run(config)
    assert job.result
    return job, job.result


def loss_at_the_start(bench: Bench, job: Job, name: str) -> float | None:
    """The held-out loss that a job measures which begins with this file of another."""
    uri = bench.jobs.artifacts(job.job_id)[name].uri
    begun = bench.run(CONFIG.model_copy(update={"steps": 1, "warm_start_uri": uri}))
    assert begun.result
    return begun.result.held_out_loss_base


def test_best_step_is_the_one_with_the_lowest_loss(bench: Bench) -> None:
    job, result = overfitted(bench)
    losses = {event.step: event.loss for event in bench.events(job) if isinstance(event, ValidationCompleted)}
    assert result.best_step == min(losses, key=lambda step: losses[step])
    assert 0 < result.best_step < 5
    assert result.held_out_loss_best == losses[result.best_step]
    assert result.held_out_loss_lora == losses[5]
    assert result.best_artifact_name == "lora-best.safetensors"


def test_every_measurement_has_the_same_yardstick_beside_it(bench: Bench) -> None:
    job, result = overfitted(bench)
    zeros = [event.held_out_loss_zero for event in bench.events(job) if isinstance(event, ValidationCompleted)]
    assert zeros == [result.held_out_loss_zero] * 6
    # The clean latents are 0 there, so what is left is the mean square of the noise.
    assert result.held_out_loss_zero == pytest.approx(1.0, abs=0.05)


def test_the_last_file_is_the_best_where_its_step_is(bench: Bench) -> None:
    _, result = overfitted(bench, OVERFITTING.model_copy(update={"steps": 1}))
    assert (result.best_step, result.best_artifact_name) == (1, "lora.safetensors")


def test_files_of_the_best_have_its_weights_and_not_the_last_ones(bench: Bench) -> None:
    job, result = overfitted(bench)
    assert result.held_out_loss_lora
    assert result.held_out_loss_best
    assert result.held_out_loss_lora > 1.5 * result.held_out_loss_best
    for form in ("safetensors", "kohya.safetensors"):
        best, last = (loss_at_the_start(bench, job, f"{name}.{form}") for name in ("lora-best", "lora"))
        assert best == pytest.approx(result.held_out_loss_best, rel=1e-3)
        assert last == pytest.approx(result.held_out_loss_lora, rel=1e-3)


def test_averaged_weights_are_those_measured_and_published(bench: Bench) -> None:
    job, result = overfitted(bench, OVERFITTING.model_copy(update={"ema_decay": 0.99}))
    for name, loss in (("lora", result.held_out_loss_lora), ("lora-best", result.held_out_loss_best)):
        assert loss_at_the_start(bench, job, f"{name}.safetensors") == pytest.approx(loss, rel=1e-3)


def test_job_that_fails_leaves_the_best_so_far(bench: Bench) -> None:
    good, sample = bench.reference, bench.manifest.samples[0]
    broken = {cache.LATENT_MEAN: torch.full((16, 8, 8), float("nan"))}
    stored = bench.objects.put(f"{bench.tenant}/broken", safetensors.torch.save(broken))
    variants = (CachedVariant(latents=CachedObject(**vars(stored))),)
    sample = sample.model_copy(update={"views": (sample.views[0].model_copy(update={"variants": variants}),)})
    bench.publish(bench.manifest.model_copy(update={"samples": (sample,)}))
    bench.held_out = good
    job = bench.run(CONFIG.model_copy(update={"max_skipped_steps": 0}))
    assert job.state is JobState.FAILED
    assert {"lora-best.safetensors", "lora-best.kohya.safetensors"} < set(bench.jobs.artifacts(job.job_id))
    assert "lora.safetensors" not in bench.jobs.artifacts(job.job_id)
    bench.reference = good
    (before,) = (event.loss for event in bench.events(job) if isinstance(event, ValidationCompleted))
    assert loss_at_the_start(bench, job, "lora-best.safetensors") == pytest.approx(before, rel=1e-3)


def test_metrics_are_in_the_store_while_the_job_runs(
    bench: Bench, transformer: FluxTransformer2DModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "SAVE_S", 0)
    seen: list[set[str]] = []

    def look(*_: object) -> None:
        seen.append({key.rpartition("/")[2] for key in bench.objects.keys(f"{bench.tenant}/jobs/")})

    handle = transformer.register_forward_pre_hook(look)
    job = bench.run(CONFIG, held_out=False)
    handle.remove()
    assert seen[0] == set()  # nothing is there before the first step
    assert seen[-1] == {"metrics.csv", f"events.out.tfevents.{job.job_id}"}


def test_job_whose_form_few_programs_read_has_another_of_its_end_and_its_best(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = OVERFITTING.model_copy(update={"adapter_type": AdapterType.DORA, "max_gradient_norm": 100.0})
    undisturbed, _ = overfitted(bench, config)
    with monkeypatch.context() as patched:
        stop_after(bench, 4, bench.stop.set, patched)
        bench.run(config)
    bench.stop.clear()
    job = bench.run_next()
    assert job.result
    assert job.result.best_step in range(1, 5)
    names = [f"{name}.comfyui.safetensors" for name in ("lora", "lora-best")]
    last, best = (
        {key: tensor for key, tensor in load(bench.file(job, name)).items() if "scale" in key} for name in names
    )
    assert any(not torch.equal(last[key], best[key]) for key in last)
    for name in names:  # that of the best was measured again, from the checkpoint
        assert digest(bench, job, name) == digest(bench, undisturbed, name)
    assert "lora.kohya.safetensors" not in bench.jobs.artifacts(job.job_id)


def test_report_has_what_was_said_when_the_job_was_created(bench: Bench) -> None:
    said = JobWarning(reason="FEW_READERS", message="few programs read LOKR")
    new = NewJob(dataset=bench.reference, config=CONFIG)
    job = bench.jobs.create(bench.tenant, new, warnings=[said])
    assert said in bench.events(job)
    assert said.message.encode() in bench.file(bench.run_next(), "report.html")
