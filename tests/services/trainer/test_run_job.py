"""One job from its cached dataset to a published file, run by a worker in this process."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers import FluxTransformer2DModel
from pydantic import SecretStr

from services.common import cache
from services.common.cache import CachedCaption, CachedObject, CachedVariant, DatasetManifest
from services.common.object_store import ObjectStore
from services.common.settings import StoreSettings
from services.stack import free_ports
from services.trainer.adapter import NonFiniteAdapter
from services.trainer.config import TrainConfig
from services.trainer.job_store import JobStore
from services.trainer.jobs import (
    DatasetReference,
    Fault,
    Job,
    JobState,
    JobWarning,
    NewJob,
    StepsCompleted,
    ValidationCompleted,
)
from services.trainer.reporter import NonFiniteLoss
from services.trainer.settings import TrainerSettings
from services.trainer.worker import Worker, failure_of
from tests.services.damage import damage
from tests.services.trainer.conftest import MakeDataset, publish
from tests.services.trainer.test_job_store import take

CONFIG = TrainConfig(
    rank=2,
    alpha=1.0,
    steps=4,
    batch_size=2,
    learning_rate=1e-2,
    validation_interval_steps=2,
    seed=3,
    gradient_checkpointing=False,
)


class Bench:
    """A worker, and a dataset to give it jobs on."""

    def __init__(
        self,
        jobs: JobStore,
        objects: ObjectStore,
        transformer: FluxTransformer2DModel,
        tenant: str,
        make_dataset: MakeDataset,
    ) -> None:
        self.jobs, self.objects, self.tenant = jobs, objects, tenant
        self.stop = threading.Event()
        self.worker = Worker(
            jobs, objects, transformer, TrainerSettings(heartbeat_s=0.02, max_attempts=2, retry_delay_s=0), self.stop
        )
        self.publish(make_dataset([(64, 64), (64, 64), (48, 80)]))

    def publish(self, manifest: DatasetManifest) -> None:
        """Make this the dataset of the jobs to come."""
        digest = publish(self.objects, self.tenant, manifest)
        self.manifest = manifest
        self.reference = DatasetReference(dataset_id="ds-test", manifest_digest=digest)

    def run(self, config: TrainConfig, *, held_out: bool = True) -> Job:
        """Create a job, run it to its end in this process, and return it."""
        new = NewJob(dataset=self.reference, held_out=self.reference if held_out else None, config=config)
        self.jobs.create(self.tenant, new)
        return self.run_next()

    def run_next(self) -> Job:
        """Run the next job in the queue to its end, or back into the queue."""
        job = take(self.jobs)
        self.worker.run_one(job)
        return self.jobs.get(self.tenant, job.job_id)


@pytest.fixture
def bench(
    job_store: JobStore,
    store: ObjectStore,
    transformer: FluxTransformer2DModel,
    tenant: str,
    make_dataset: MakeDataset,
) -> Bench:
    """A worker on the resident transformer."""
    return Bench(job_store, store, transformer, tenant, make_dataset)


def test_job_ends_with_a_file_and_with_losses_before_and_after(bench: Bench) -> None:
    job = bench.run(CONFIG)
    assert job.state is JobState.SUCCEEDED
    assert job.result
    key = bench.objects.key_of(job.result.lora.uri)
    assert key
    assert key.startswith(f"{bench.tenant}/jobs/{job.job_id}/")
    assert len(bench.objects.get(key, digest=job.result.lora.content_digest)) == job.result.lora.size_bytes
    assert job.result.held_out_loss_base != job.result.held_out_loss_lora


def test_events_tell_the_whole_story(bench: Bench) -> None:
    job = bench.run(CONFIG)
    events = [stored.event for stored in bench.jobs.events_after(job.job_id, 0)]
    steps = [step.step for event in events if isinstance(event, StepsCompleted) for step in event.steps]
    assert steps == [1, 2, 3, 4]
    assert [event.step for event in events if isinstance(event, ValidationCompleted)] == [0, 2, 4]
    assert [event.kind for event in events[-2:]] == ["artifact_published", "state_changed"]


def test_header_tells_where_the_file_comes_from(bench: Bench, tmp_path: Path) -> None:
    job = bench.run(CONFIG)
    assert job.result
    (tmp_path / "lora").write_bytes(bench.objects.get(bench.objects.key_of(job.result.lora.uri) or ""))
    with safetensors.safe_open(tmp_path / "lora", "pt") as file:
        header = file.metadata()
    assert header["fluxsmith.dataset_digest"] == bench.reference.manifest_digest
    assert header["fluxsmith.encoder_fingerprint"] == bench.manifest.encoder_fingerprint
    assert TrainConfig(**json.loads(header["fluxsmith.config"])) == CONFIG
    assert (header["ss_num_train_images"], header["ss_seed"]) == ("3", "3")


def test_same_job_twice_gives_the_same_file(bench: Bench) -> None:
    first, again = bench.run(CONFIG, held_out=False), bench.run(CONFIG, held_out=False)
    assert first.result
    assert again.result
    assert first.result.lora.content_digest == again.result.lora.content_digest
    assert first.result.lora.uri != again.result.lora.uri


def test_epochs_tell_the_length(bench: Bench) -> None:
    job = bench.run(CONFIG.model_copy(update={"steps": None, "epochs": 3}), held_out=False)
    last = [
        stored.event for stored in bench.jobs.events_after(job.job_id, 0) if isinstance(stored.event, StepsCompleted)
    ][-1]
    assert last.steps[-1].step == last.total_steps == 6
    assert job.result
    assert job.result.held_out_loss_base is None


def test_short_run_is_warned_of(bench: Bench) -> None:
    job = bench.run(CONFIG, held_out=False)
    events = [stored.event for stored in bench.jobs.events_after(job.job_id, 0)]
    (warning,) = [event for event in events if isinstance(event, JobWarning)]
    assert warning.reason == "SHORT_RUN"
    assert "3 images in batches of 2 give 2 steps an epoch and 4 in all" in warning.message


def test_numbers_that_are_not_finite_are_the_users_to_mend(bench: Bench) -> None:
    broken = {cache.LATENT_MEAN: torch.full((16, 8, 8), float("nan")), cache.LATENT_LOGVAR: torch.zeros(16, 8, 8)}
    stored = bench.objects.put(f"{bench.tenant}/broken", safetensors.torch.save(broken))
    sample = bench.manifest.samples[0]
    variant = CachedVariant(latents=CachedObject(**vars(stored)))
    sample = sample.model_copy(update={"views": (sample.views[0].model_copy(update={"variants": (variant,)}),)})
    bench.publish(bench.manifest.model_copy(update={"samples": (sample,)}))
    job = bench.run(CONFIG, held_out=False)
    assert (job.state, job.result) == (JobState.FAILED, None)
    assert job.failure
    assert (job.failure.fault, job.failure.reason) == (Fault.USER, "NON_FINITE_LOSS")
    assert "learning rate" in job.failure.remedy


def test_dataset_of_another_base_model_is_refused(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="services.trainer.worker")
    wide = {cache.T5_EMBEDDING: torch.zeros(8, 4096), cache.CLIP_POOLED: torch.zeros(64)}
    stored = bench.objects.put(f"{bench.tenant}/wide", safetensors.torch.save(wide))
    caption = CachedCaption(caption="", embedding=CachedObject(**vars(stored)))
    bench.publish(bench.manifest.model_copy(update={"empty_caption": caption}))
    job = bench.run(CONFIG, held_out=False)
    assert job.failure
    assert (job.failure.fault, job.failure.reason) == (Fault.USER, "BASE_MODEL_MISMATCH")
    assert not [record for record in caplog.records if record.exc_info]  # the user's own fault leaves no trace


def test_job_on_damaged_data_is_tried_again_then_fails_with_the_remedy(bench: Bench) -> None:
    cached = bench.manifest.samples[0].views[0].variants[0].latents
    good = bench.objects.get(cached.key)
    damage(bench.objects, cached.key)
    assert bench.run(CONFIG).state is JobState.QUEUED  # it may be mended by the next try
    job = bench.run_next()
    assert job.failure
    assert (job.failure.reason, job.failure.fault, job.attempt) == ("OBJECT_DAMAGED", Fault.SYSTEM, 2)
    assert "Encode" in job.failure.remedy
    bench.objects.put(cached.key, good)
    assert bench.run(CONFIG).state is JobState.SUCCEEDED


def test_cancelled_job_ends_cancelled_and_publishes_nothing(bench: Bench) -> None:
    bench.jobs.create(bench.tenant, NewJob(dataset=bench.reference, config=CONFIG))
    job = take(bench.jobs)
    bench.worker.run_one(bench.jobs.cancel(bench.tenant, job.job_id))
    ended = bench.jobs.get(bench.tenant, job.job_id)
    assert (ended.state, ended.result) == (JobState.CANCELLED, None)
    assert not list(bench.objects.keys(f"{bench.tenant}/jobs/"))


def test_stopped_worker_puts_its_job_back(bench: Bench) -> None:
    bench.stop.set()
    job = bench.run(CONFIG)
    assert (job.state, job.attempt) == (JobState.QUEUED, 0)


def test_job_goes_back_while_the_store_is_down(bench: Bench) -> None:
    endpoint = f"127.0.0.1:{free_ports(1)[0]}"
    bench.worker._objects = ObjectStore(StoreSettings(endpoint=endpoint, secret_key=SecretStr("s")))
    job = bench.run(CONFIG)
    assert (job.state, job.failure, job.attempt) == (JobState.QUEUED, None, 0)


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (NonFiniteLoss("nan"), Fault.USER),
        (NonFiniteAdapter("nan"), Fault.USER),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), Fault.RESOURCE),
        (RuntimeError("a bug"), Fault.SYSTEM),
    ],
)
def test_every_failure_has_a_fault_and_a_remedy(error: Exception, fault: Fault) -> None:
    failure = failure_of(error)
    assert failure.fault is fault
    assert failure.remedy
