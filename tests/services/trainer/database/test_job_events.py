"""What a job's events say of its files, and numbers that JSON does not have, on both databases."""

from __future__ import annotations

import math

from services.trainer.database.job_store import JobStore
from services.trainer.jobs import (
    ArtifactPublished,
    JobWarning,
    PreviewRendered,
    StepMetrics,
    StepsCompleted,
)
from tests.services.trainer.database.test_job_store import ARTIFACT, NEW, take


def test_newest_file_of_each_name_is_found(job_store: JobStore) -> None:
    job_store.create("t", NEW)
    job = take(job_store)
    newer = ARTIFACT.model_copy(update={"uri": "s3://b/newer"})
    picture = ARTIFACT.model_copy(update={"artifact_name": "previews/000000-0.png"})
    job_store.claims.append(job, [ArtifactPublished(artifact=ARTIFACT), JobWarning(reason="R", message="m")])
    job_store.claims.append(job, [PreviewRendered(step=0, prompt="p", seed=1, image=picture)])
    job_store.claims.append(job, [ArtifactPublished(artifact=newer)])
    assert job_store.artifacts(job.job_id) == {"lora.safetensors": newer, "previews/000000-0.png": picture}


def test_numbers_of_a_skipped_step_survive_the_database(job_store: JobStore) -> None:
    job_store.create("t", NEW)
    job = take(job_store)
    step = StepMetrics(
        step=1, loss=float("nan"), learning_rate=0.1, gradient_norm=float("inf"), duration_s=1.0, skipped=True
    )
    job_store.claims.append(job, [StepsCompleted(steps=(step,), total_steps=2)])
    stored = job_store.events_after(job.job_id, 0)[-1].event
    assert isinstance(stored, StepsCompleted)
    assert math.isnan(stored.steps[0].loss)
    assert stored.steps[0].gradient_norm == math.inf


def test_append_that_is_tried_again_writes_its_events_once(job_store: JobStore) -> None:
    job_store.create("t", NEW)
    job = take(job_store)
    for write_id in ("a", "a", "b"):
        job_store.claims.append(job, [JobWarning(reason=write_id, message="m")], write_id=write_id)
    told = [stored.event.reason for stored in job_store.events_after(job.job_id, 0) if stored.event.kind == "warning"]
    assert told == ["a", "b"]
