"""One job from its cached dataset to a published file, run by a worker in this process."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import grpc
import pytest
import safetensors.torch
import torch
from diffusers import FluxTransformer2DModel
from pydantic import SecretStr

from services.common import cache
from services.common.cache import CachedCaption, CachedObject, CachedVariant, DatasetManifest
from services.common.object_store import ObjectStore
from services.common.settings import StoreSettings
from services.ports import free_ports
from services.stack import ROOT
from services.trainer.adapters.adapter import NonFiniteAdapter
from services.trainer.adapters.files import DtypeTooSmall
from services.trainer.base import Base
from services.trainer.config import TrainConfig
from services.trainer.config.choices import GuidanceMode
from services.trainer.database.job_store import JobStore
from services.trainer.failures import failure_of
from services.trainer.jobs import (
    DatasetReference,
    Event,
    Fault,
    Job,
    JobState,
    JobWarning,
    NewJob,
    StepsCompleted,
    ValidationCompleted,
)
from services.trainer.run_job import Workplace
from services.trainer.settings import TrainerSettings
from services.trainer.train import NonFiniteLoss
from services.trainer.worker import Worker
from tests.services.damage import damage
from tests.services.trainer.conftest import MakeDataset, publish
from tests.services.trainer.database.test_job_store import take

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
        encoder_address: str,
    ) -> None:
        self.jobs, self.objects, self.tenant = jobs, objects, tenant
        self.stop = threading.Event()
        settings = TrainerSettings(heartbeat_s=0.02, max_attempts=2, retry_delay_s=0, encoder_address=encoder_address)
        folder = ROOT / "assets" / "flux-tiny"
        base = Base(transformer=transformer, scheduler_folder=folder / "scheduler", name=folder.name)
        self.place = Workplace(base=base, store=objects, jobs=jobs, settings=settings)
        self.worker = Worker(self.place, self.stop)
        self.publish(make_dataset([(64, 64), (64, 64), (48, 80)]))

    def publish(self, manifest: DatasetManifest) -> None:
        """Make this the dataset of the jobs to come."""
        digest = publish(self.objects, self.tenant, manifest)
        self.manifest = manifest
        self.reference = self.held_out = DatasetReference(dataset_id="ds-test", manifest_digest=digest)

    def measure_on(self, manifest: DatasetManifest) -> None:
        """Make this the held-out dataset of the jobs to come, in place of the one they train on."""
        digest = publish(self.objects, self.tenant, manifest)
        self.held_out = DatasetReference(dataset_id="ds-held-out", manifest_digest=digest)

    def run(self, config: TrainConfig, *, held_out: bool = True) -> Job:
        """Create a job, run it to its end in this process, and return it."""
        new = NewJob(dataset=self.reference, held_out=self.held_out if held_out else None, config=config)
        self.jobs.create(self.tenant, new)
        return self.run_next()

    def run_next(self) -> Job:
        """Run the next job in the queue to its end, or back into the queue."""
        job = take(self.jobs)
        self.worker.run_one(job)
        return self.jobs.get(self.tenant, job.job_id)

    def events(self, job: Job) -> list[Event]:
        """Everything that happened to a job."""
        return [stored.event for stored in self.jobs.events_after(job.job_id, 0)]

    def warnings(self, job: Job) -> dict[str, str]:
        """Reasons and messages of a job's warnings."""
        return {event.reason: event.message for event in self.events(job) if isinstance(event, JobWarning)}

    def file(self, job: Job, name: str) -> bytes:
        """A file that a job has published."""
        artifact = self.jobs.artifacts(job.job_id)[name]
        return self.objects.get(self.objects.key_of(artifact.uri) or "", digest=artifact.content_digest)


def undated(data: bytes) -> bytes:
    """A file without the day in its header, on which two jobs need not have begun both."""
    return re.sub(rb'"modelspec.date":"[0-9-]{10}"', b"", data)


@pytest.fixture(scope="module")
def refusing_server() -> Iterator[str]:
    """Address of a server that knows no call: says no at once, where nobody at all would be waited for."""
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


@pytest.fixture
def bench(
    job_store: JobStore,
    store: ObjectStore,
    transformer: FluxTransformer2DModel,
    tenant: str,
    make_dataset: MakeDataset,
    refusing_server: str,
) -> Bench:
    """A worker on the resident transformer."""
    return Bench(job_store, store, transformer, tenant, make_dataset, refusing_server)


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


def test_same_job_twice_gives_the_same_file(bench: Bench) -> None:
    first, again = bench.run(CONFIG, held_out=False), bench.run(CONFIG, held_out=False)
    assert first.result
    assert again.result
    assert undated(bench.file(first, "lora.safetensors")) == undated(bench.file(again, "lora.safetensors"))
    assert first.result.lora.uri != again.result.lora.uri


def test_epochs_tell_the_length(bench: Bench) -> None:
    job = bench.run(CONFIG.model_copy(update={"steps": None, "epochs": 3}), held_out=False)
    last = [
        stored.event for stored in bench.jobs.events_after(job.job_id, 0) if isinstance(stored.event, StepsCompleted)
    ][-1]
    assert last.steps[-1].step == last.total_steps == 6
    assert job.result
    assert job.result.held_out_loss_base is None
    assert job.result.held_out_loss_zero is None
    assert job.result.best_artifact_name == ""


def test_short_run_is_warned_of(bench: Bench) -> None:
    job = bench.run(CONFIG, held_out=False)
    message = bench.warnings(job)["SHORT_RUN"]
    assert "3 images in batches of 2 give 2 batches an epoch, the run has 4 steps; under 100 steps" in message


def test_the_warning_counts_as_a_person_would(bench: Bench, make_dataset: MakeDataset) -> None:
    bench.publish(make_dataset([(64, 64)] * 3, repeats=4))
    epochs = CONFIG.model_copy(update={"steps": None, "epochs": 2, "gradient_accumulation_steps": 2})
    message = bench.warnings(bench.run(epochs, held_out=False))["SHORT_RUN"]
    assert "3 images, shown 12 times an epoch with repeats and resolutions, in batches of 2 give 6 batches" in message
    assert "2 epochs of them at 2 batches a step make 6 steps" in message


def test_numbers_that_are_not_finite_are_the_users_to_mend(bench: Bench) -> None:
    broken = {cache.LATENT_MEAN: torch.full((16, 8, 8), float("nan")), cache.LATENT_LOGVAR: torch.zeros(16, 8, 8)}
    stored = bench.objects.put(f"{bench.tenant}/broken", safetensors.torch.save(broken))
    sample = bench.manifest.samples[0]
    variant = CachedVariant(latents=CachedObject(**vars(stored)))
    sample = sample.model_copy(update={"views": (sample.views[0].model_copy(update={"variants": (variant,)}),)})
    bench.publish(bench.manifest.model_copy(update={"samples": (sample,)}))
    for config in (CONFIG, CONFIG.model_copy(update={"max_skipped_steps": 2})):
        job = bench.run(config, held_out=False)  # all four steps are skipped, or the third is one too many
        assert (job.state, job.result) == (JobState.FAILED, None)
        assert job.failure
        assert (job.failure.fault, job.failure.reason) == (Fault.USER, "NON_FINITE_LOSS")
        assert "learning rate" in job.failure.remedy
        assert set(bench.jobs.artifacts(job.job_id)) == {
            "metrics.csv",
            f"events.out.tfevents.{job.job_id}",
            "report.html",
        }
        assert b"learning rate" in bench.file(job, "report.html")


def test_guidance_that_the_base_does_not_know_is_the_users_to_mend(
    bench: Bench, transformer: FluxTransformer2DModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = type(transformer.config)({**transformer.config, "guidance_embeds": False})
    monkeypatch.setattr(transformer, "_internal_dict", known)
    job = bench.run(CONFIG.model_copy(update={"guidance": GuidanceMode.FIXED}), held_out=False)
    assert job.failure
    assert (job.failure.fault, job.failure.reason) == (Fault.USER, "GUIDANCE_NOT_SUPPORTED")


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


def test_dataset_of_an_earlier_version_is_refused(bench: Bench) -> None:
    manifest = b'{"format": 0}'
    digest = hashlib.sha256(manifest).hexdigest()
    bench.objects.put(cache.manifest_key(bench.tenant, digest), manifest)
    bench.reference = DatasetReference(dataset_id="ds-test", manifest_digest=digest)
    job = bench.run(CONFIG, held_out=False)
    assert job.failure
    assert (job.failure.reason, job.state) == ("MANIFEST_OUTDATED", JobState.FAILED)
    assert "Encode the dataset again" in job.failure.remedy


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
    down = ObjectStore(StoreSettings(endpoint=endpoint, secret_key=SecretStr("s")))
    bench.worker = Worker(replace(bench.place, store=down), bench.stop)
    job = bench.run(CONFIG)
    assert (job.state, job.failure, job.attempt) == (JobState.QUEUED, None, 0)


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (NonFiniteLoss("nan"), Fault.USER),
        (NonFiniteAdapter("nan"), Fault.USER),
        (DtypeTooSmall("7e4"), Fault.USER),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), Fault.RESOURCE),
        (RuntimeError("a bug"), Fault.SYSTEM),
    ],
)
def test_every_failure_has_a_fault_and_a_remedy(error: Exception, fault: Fault) -> None:
    failure = failure_of(error)
    assert failure.fault is fault
    assert failure.remedy


def test_setting_without_effect_is_warned_of(bench: Bench) -> None:
    job = bench.run(CONFIG.model_copy(update={"sigma_shift": 2.0}), held_out=False)
    assert "sigma_shift has no effect" in bench.warnings(job)["UNUSED_SETTING"]


def test_every_file_of_a_job_is_published_and_named_in_its_result(bench: Bench) -> None:
    job = bench.run(CONFIG)
    assert job.result
    names = {"lora.safetensors", "lora.kohya.safetensors", "lora-best.safetensors", "lora-best.kohya.safetensors"}
    names |= {"metrics.csv", f"events.out.tfevents.{job.job_id}", "report.html"}
    assert {artifact.artifact_name for artifact in job.result.artifacts} == names
    assert set(bench.jobs.artifacts(job.job_id)) == names
    assert all(bench.file(job, name) for name in names)


def test_metrics_table_has_every_step_and_measurement(bench: Bench) -> None:
    job = bench.run(CONFIG)
    rows = list(csv.DictReader(io.StringIO(bench.file(job, "metrics.csv").decode())))
    assert [row["step"] for row in rows] == ["0", "1", "2", "3", "4"]
    assert [bool(row["held_out_loss"]) for row in rows] == [True, False, True, False, True]
    assert job.result
    assert float(rows[-1]["held_out_loss"]) == pytest.approx(job.result.held_out_loss_lora)
    zero = f"{job.result.held_out_loss_zero:.9g}"
    assert [row["held_out_loss_zero"] for row in rows] == [zero, "", zero, "", zero]


def test_a_measurement_must_be_better_by_the_least_difference(bench: Bench) -> None:
    asked = {"steps": 40, "early_stopping_patience": 1, "early_stopping_min_delta": 100.0}
    job = bench.run(CONFIG.model_copy(update=asked))
    assert job.step == 2  # the first measurement after the base's
    assert job.result
    assert job.result.stopped_early
    assert not (bench.run(CONFIG).result or job.result).stopped_early


def test_share_held_out_is_measured_and_not_trained_on(bench: Bench) -> None:
    job = bench.run(CONFIG.model_copy(update={"held_out_share": 0.34}), held_out=False)
    assert job.result
    assert job.result.held_out_loss_base is not None
    assert b'"ss_num_train_images":"2"' in bench.file(job, "lora.safetensors")


def test_previews_are_skipped_with_a_warning_while_the_encoder_is_away(bench: Bench) -> None:
    job = bench.run(CONFIG.model_copy(update={"preview_prompts": ("a cat",)}), held_out=False)
    assert job.state is JobState.SUCCEEDED
    assert "encoder" in bench.warnings(job)["PREVIEW_SKIPPED"]
    assert "encoder" in bench.warnings(job)["CONTACT_SHEET_SKIPPED"]


def test_warm_start_goes_on_from_the_file_of_another_job(bench: Bench) -> None:
    first = bench.run(CONFIG)
    assert first.result
    again = CONFIG.model_copy(update={"warm_start_uri": first.result.lora.uri})
    second = bench.run(again)
    assert second.result
    assert second.result.held_out_loss_base == pytest.approx(first.result.held_out_loss_lora, rel=1e-4)
    header = bench.file(second, "lora.safetensors")[:20_000]
    assert first.result.lora.content_digest.encode() in header
    assert bench.tenant.encode() not in header  # where the store has it is nobody else's business


def test_warm_start_from_a_file_that_is_gone_is_the_users_to_mend(bench: Bench) -> None:
    uri = bench.objects.uri(f"{bench.tenant}/adapters/{'0' * 64}.safetensors")
    job = bench.run(CONFIG.model_copy(update={"warm_start_uri": uri}))
    assert job.failure
    assert job.failure.fault is Fault.USER


def test_target_that_matches_nothing_fails_with_the_nearest_names(bench: Bench) -> None:
    job = bench.run(CONFIG.model_copy(update={"target_regex": r"transformer_blocks\.0\.attn\.to_quer"}))
    assert job.failure
    assert (job.failure.fault, job.failure.reason) == (Fault.USER, "TARGET_MATCHES_NOTHING")
    assert "transformer_blocks.0.attn.to_q" in job.failure.message


def test_all_draws_of_a_run_are_functions_of_its_seed(bench: Bench) -> None:
    drawing = {"ema_decay": 0.9, "adapter_dropout": 0.1, "gradient_accumulation_steps": 2, "caption_dropout": 0.5}
    config = CONFIG.model_copy(update={**drawing, "sigma_stratified": True, "guidance": GuidanceMode.SAMPLED})
    files = [bench.file(bench.run(config, held_out=False), "lora.safetensors") for _ in range(2)]
    assert undated(files[0]) == undated(files[1])
