"""Where the files of a job lie, and how they get there."""

from __future__ import annotations

from collections.abc import Collection

from services.common.object_store import ObjectStore
from services.trainer.jobs import Artifact, Job

LORA_FILE = "lora.safetensors"
KOHYA_FILE = "lora.kohya.safetensors"
COMFYUI_FILE = "lora.comfyui.safetensors"
BEST_FILE = "lora-best.safetensors"
BEST_KOHYA_FILE = "lora-best.kohya.safetensors"
BEST_COMFYUI_FILE = "lora-best.comfyui.safetensors"
METRICS_FILE = "metrics.csv"
REPORT_FILE = "report.html"


def best_artifact_name(best_step: int | None, last_step: int, names: Collection[str]) -> str:
    """Which of the files holds the best adapter; empty where none was measured, or none of them holds it.

    LORA_FILE always holds the last one. Where that is the best too, BEST_FILE holds the same.
    """
    if best_step is None:
        return ""
    wanted = LORA_FILE if best_step == last_step and LORA_FILE in names else BEST_FILE
    return wanted if wanted in names else ""


def job_prefix(tenant: str, job_id: str) -> str:
    """Where everything that a job made lies."""
    return f"{tenant}/jobs/{job_id}/"


def checkpoints_prefix(tenant: str, job_id: str) -> str:
    """Where its checkpoints lie."""
    return f"{job_prefix(tenant, job_id)}checkpoints/"


def epoch_prefix(job: Job) -> str:
    """Where one worker's part of it lies: no worker that lost the job can reach what the next one writes."""
    return f"{job_prefix(job.tenant, job.job_id)}{job.epoch}/"


def put_file(
    store: ObjectStore, job: Job, name: str, data: bytes, *, content_type: str = "application/octet-stream"
) -> Artifact:
    """Write a file of the job under its epoch; what had the name before is replaced."""
    stored = store.put(f"{epoch_prefix(job)}{name}", data, content_type=content_type)
    return Artifact(
        artifact_name=name, uri=store.uri(stored.key), size_bytes=stored.size_bytes, content_digest=stored.digest
    )
