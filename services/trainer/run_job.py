"""One job from its cached dataset to a published LoRA file, on a base transformer that is already there."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Callable
from importlib.metadata import version

from diffusers import FluxTransformer2DModel

from services.common.cache import read_manifest
from services.common.errors import NotReady
from services.common.object_store import ObjectStore
from services.trainer.adapter import adapter_file, attached
from services.trainer.arrival import ArrivingSamples
from services.trainer.cached_dataset import CachedDataset, Widths
from services.trainer.dataset_references import encoder_mismatch
from services.trainer.jobs import (
    Artifact,
    DatasetReference,
    Job,
    JobWarning,
    TrainingResult,
    ValidationCompleted,
)
from services.trainer.reporter import NonFiniteLoss, Reporter
from services.trainer.train import Step, train
from services.trainer.validation import held_out_loss

LORA_FILE = "lora.safetensors"
SHORT_RUN_STEPS = 100


def run_job(job: Job, transformer: FluxTransformer2DModel, store: ObjectStore, reporter: Reporter) -> TrainingResult:
    """Train and publish. The base is afterwards what it was before, also when something is raised."""
    config = job.config
    dataset = _dataset(store, job.tenant, job.dataset, reporter.check)
    refuse_other_base(transformer, dataset)
    held_out = _dataset(store, job.tenant, job.held_out, reporter.check) if job.held_out else None
    if held_out and held_out.head.encoder_fingerprint != dataset.head.encoder_fingerprint:
        raise encoder_mismatch()
    reporter.total_steps = config.steps or config.total_steps(dataset.steps_per_epoch(config.batch_size))
    _warn_of_short_run(job, dataset, reporter)
    batches = dataset.batches(config, reporter.total_steps, in_order_first=job.start_while_encoding)
    if config.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    else:
        transformer.disable_gradient_checkpointing()
    losses: dict[int, float] = {}

    def validate(step: int) -> None:
        if held_out:
            losses[step] = held_out_loss(transformer, held_out, config.batch_size, reporter.check)
            if not math.isfinite(losses[step]):
                raise NonFiniteLoss(f"held-out loss {losses[step]} after step {step}")
            reporter.write([ValidationCompleted(step=step, loss=losses[step])])
            reporter.restart_clock()

    def on_step(step: Step) -> None:
        reporter.on_step(step)
        interval = config.validation_interval(reporter.total_steps)
        if step.number % interval == 0 or step.number == reporter.total_steps:
            reporter.flush()
            validate(step.number)

    with attached(transformer, config):
        validate(0)  # the adapter starts as the identity: this is the base
        train(transformer, batches, config, on_step)
        data = adapter_file(transformer, config, _provenance(job, dataset))
    artifact = reporter.patiently(lambda: publish(store, job, data))
    return TrainingResult(
        lora=artifact,
        held_out_loss_base=losses.get(0),
        held_out_loss_lora=losses.get(reporter.total_steps),
        step_time_s=statistics.median(reporter.durations_s),
    )


def refuse_other_base(transformer: FluxTransformer2DModel, dataset: CachedDataset) -> None:
    """Raise `NotReady` when a dataset was encoded for a base model of other widths than this one."""
    found = dataset.widths()
    config = transformer.config
    wanted = Widths(t5=config.joint_attention_dim, clip=config.pooled_projection_dim, latents=config.in_channels // 4)
    if found != wanted:
        raise NotReady(
            f"the dataset was encoded with {found}, the trainer's base model has {wanted}",
            reason="BASE_MODEL_MISMATCH",
            remedy="Give encoder and trainer the same FLUXSMITH_BASE_MODEL, and encode the dataset again.",
        )


def publish(store: ObjectStore, job: Job, data: bytes) -> Artifact:
    """Put the LoRA file under the job's epoch, where no worker that lost the job can reach it."""
    stored = store.put(f"{job_prefix(job.tenant, job.job_id)}{job.epoch}/{LORA_FILE}", data)
    return Artifact(
        artifact_name=LORA_FILE, uri=store.uri(stored.key), size_bytes=stored.size_bytes, content_digest=stored.digest
    )


def job_prefix(tenant: str, job_id: str) -> str:
    """Where everything that a job made lies."""
    return f"{tenant}/jobs/{job_id}/"


def _dataset(
    store: ObjectStore, tenant: str, reference: DatasetReference, while_waiting: Callable[[], None]
) -> CachedDataset:
    if reference.encoding_id:
        samples = ArrivingSamples(store, tenant, reference.encoding_id, while_waiting=while_waiting)
        return CachedDataset(store, samples.head(), samples)
    manifest = read_manifest(store, tenant, reference.manifest_digest)
    return CachedDataset(store, manifest, manifest.samples)


def _dataset_digest(job: Job, dataset: CachedDataset) -> str:
    samples = dataset.samples
    return samples.manifest_digest() if isinstance(samples, ArrivingSamples) else job.dataset.manifest_digest


def _provenance(job: Job, dataset: CachedDataset) -> dict[str, str]:
    config = job.config.model_dump_json()
    return {
        "modelspec.title": job.display_name or "fluxsmith LoRA",
        "ss_num_train_images": str(len(dataset.samples)),
        "ss_learning_rate": str(job.config.learning_rate),
        "ss_seed": str(job.config.seed),
        "fluxsmith.version": version("fluxsmith"),
        "fluxsmith.config": config,
        "fluxsmith.config_digest": hashlib.sha256(config.encode()).hexdigest(),
        "fluxsmith.dataset_digest": _dataset_digest(job, dataset),
        "fluxsmith.encoder_fingerprint": dataset.head.encoder_fingerprint,
    }


def _warn_of_short_run(job: Job, dataset: CachedDataset, reporter: Reporter) -> None:
    if reporter.total_steps < SHORT_RUN_STEPS:
        arithmetic = f"{reporter.total_steps} in all"
        if not job.dataset.encoding_id:  # else nobody knows yet
            images, batch = len(dataset.samples), job.config.batch_size
            steps = dataset.steps_per_epoch(batch)
            arithmetic = f"{images} images in batches of {batch} give {steps} steps an epoch and {arithmetic}"
        message = f"{arithmetic}; under {SHORT_RUN_STEPS} steps a LoRA learns little: raise steps or epochs"
        reporter.write([JobWarning(reason="SHORT_RUN", message=message)])
