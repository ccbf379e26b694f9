"""Between protobuf and the trainer's domain. Names are the same on both sides, so most of it is mechanical."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from fluxsmith.v1 import trainer_pb2 as pb
from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from services.trainer.config import TrainConfig
from services.trainer.estimate.estimator import Estimate
from services.trainer.estimate.measured import DATE, DEVICE
from services.trainer.jobs import (
    Artifact,
    ArtifactPublished,
    Checkpoint,
    CheckpointWritten,
    Job,
    JobFailure,
    JobState,
    JobWarning,
    PreviewRendered,
    StateChanged,
    StepMetrics,
    StepsCompleted,
    StoredEvent,
    TrainingResult,
    ValidationCompleted,
)

WITH_A_WORKER = {JobState.RUNNING, JobState.PAUSING, JobState.CANCELLING}


def config_fields(message: pb.TrainConfig) -> dict[str, Any]:
    """The fields that a caller set, as the domain has them, not yet looked at."""
    fields: dict[str, Any] = {}
    for descriptor, value in message.ListFields():
        if descriptor.enum_type:
            fields[descriptor.name] = _choice(descriptor.enum_type, value)
        elif descriptor.name == "rank_pattern":
            fields[descriptor.name] = dict(value)
        else:
            fields[descriptor.name] = tuple(value) if descriptor.is_repeated else value
    return fields


def config_message(config: TrainConfig) -> pb.TrainConfig:
    """A configuration with every field that has a value."""
    fields = config.model_dump(exclude_none=True)
    for descriptor in pb.TrainConfig.DESCRIPTOR.fields:
        if descriptor.enum_type:
            name = _prefix(descriptor.enum_type) + fields[descriptor.name]
            fields[descriptor.name] = descriptor.enum_type.values_by_name[name].number
    return pb.TrainConfig(**fields)


def _choice(enum: EnumDescriptor, number: int) -> str:
    """Name of an enum's value as the domain has it; the number itself when this version does not know it."""
    known = enum.values_by_number.get(number)
    return known.name.removeprefix(_prefix(enum)) if known else str(number)


def _prefix(enum: EnumDescriptor) -> str:
    return enum.values_by_number[0].name.removesuffix("UNSPECIFIED")


def job_message(job: Job, *, queue_position: int = 0, with_artifacts: bool = True) -> pb.TrainingJob:
    """A job as callers see it; its files may be thousands, which a listing leaves out."""
    return pb.TrainingJob(
        job_id=job.job_id,
        user_id=job.user_id,
        display_name=job.display_name,
        state=_state(job.state),
        config=config_message(job.config),
        dataset_id=job.dataset.dataset_id,
        held_out_dataset_id=job.held_out.dataset_id if job.held_out else "",
        start_while_encoding=job.start_while_encoding,
        create_time=timestamp(job.create_time_s),
        start_time=timestamp(job.start_time_s),
        end_time=timestamp(job.end_time_s),
        step=job.step,
        total_steps=job.total_steps,
        attempt=job.attempt,
        failure=_failure(job.failure) if job.failure else None,
        result=_result(job.result, with_artifacts=with_artifacts) if job.result else None,
        last_sequence=job.last_sequence,
        queue_position=queue_position,
        priority=job.priority,
        time_left=_time_left(job),
        checkpoint_step=job.checkpoint_step,
        progress_time=timestamp(job.progress_time_s) if job.state in WITH_A_WORKER else None,
        first_sequence=job.first_sequence,
    )


def event_message(stored: StoredEvent) -> pb.TrainingEvent:
    """An event as callers see it."""
    message = pb.TrainingEvent(sequence=stored.sequence, time=timestamp(stored.time_s))
    match stored.event:
        case StateChanged() as event:
            message.state_changed.CopyFrom(pb.StateChanged(state=_state(event.state), message=event.message))
        case StepsCompleted() as event:
            steps = [_step(step) for step in event.steps]
            message.steps_completed.CopyFrom(pb.StepsCompleted(steps=steps, total_steps=event.total_steps))
        case ValidationCompleted() as event:
            message.validation_completed.CopyFrom(validation_message(event))
        case ArtifactPublished() as event:
            message.artifact_published.CopyFrom(artifact_message(event.artifact))
        case PreviewRendered() as event:
            message.preview_rendered.CopyFrom(
                pb.PreviewRendered(
                    step=event.step, prompt=event.prompt, seed=event.seed, image=artifact_message(event.image)
                )
            )
        case CheckpointWritten() as event:
            checkpoint = checkpoint_message(event.checkpoint, stored.time_s)
            message.checkpoint_written.CopyFrom(pb.CheckpointWritten(checkpoint=checkpoint))
        case JobWarning() as event:
            message.warning.CopyFrom(pb.JobWarning(reason=event.reason, message=event.message))
    return message


def validation_message(event: ValidationCompleted) -> pb.ValidationCompleted:
    """A measurement on held-out data as callers see it."""
    return pb.ValidationCompleted(step=event.step, loss=event.loss, held_out_loss_zero=event.held_out_loss_zero)


def checkpoint_message(checkpoint: Checkpoint, create_time_s: float) -> pb.Checkpoint:
    """A checkpoint as callers see it, written at `create_time_s` seconds since 1970."""
    return pb.Checkpoint(
        checkpoint_id=checkpoint.checkpoint_id,
        step=checkpoint.step,
        create_time=timestamp(create_time_s),
        uri=checkpoint.uri,
        size_bytes=checkpoint.size_bytes,
        lora=artifact_message(checkpoint.lora),
        held_out_loss=checkpoint.held_out_loss,
    )


def artifact_message(artifact: Artifact) -> pb.ArtifactPublished:
    """A published file as callers see it."""
    return pb.ArtifactPublished(**artifact.model_dump())


def estimate_message(estimate: Estimate) -> pb.EstimateMemoryResponse:
    """An estimate as callers see it."""
    return pb.EstimateMemoryResponse(
        peak_bytes=estimate.peak_bytes,
        parts=[
            pb.MemoryPart(name=part.name, bytes=part.size_bytes, explanation=part.explanation)
            for part in estimate.parts
        ],
        recommended_bytes=estimate.recommended_bytes,
        measurements=[
            pb.MemoryMeasurement(
                device=DEVICE,
                date=DATE,
                configuration=run.configuration,
                allocated_bytes=round(run.allocated_gb * 1e9),
                reserved_bytes=round(run.reserved_gb * 1e9),
            )
            for run in estimate.measured
        ],
        device_bytes=estimate.device_bytes,
        savings=[pb.MemorySaving(change=saving.change, bytes=saving.saved_bytes) for saving in estimate.savings],
    )


def timestamp(seconds: float | None) -> Timestamp | None:
    """Seconds since 1970 as a protobuf timestamp."""
    if seconds is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(datetime.fromtimestamp(seconds, UTC))
    return stamp


def duration(seconds: float) -> Duration:
    """Seconds as a protobuf duration."""
    message = Duration()
    message.FromTimedelta(timedelta(seconds=seconds))
    return message


def _time_left(job: Job) -> Duration | None:
    """What the steps to come will take, by what they take lately."""
    if job.state is not JobState.RUNNING or not job.total_steps or job.step_time_s is None:
        return None
    return duration(max(job.total_steps - job.step, 0) * job.step_time_s)


def _state(state: JobState) -> pb.TrainingJobState.ValueType:
    return pb.TrainingJobState.Value(f"TRAINING_JOB_STATE_{state.name}")


def _failure(failure: JobFailure) -> pb.JobFailure:
    fault = pb.JobFailureFault.Value(f"JOB_FAILURE_FAULT_{failure.fault.name}")
    return pb.JobFailure(fault=fault, reason=failure.reason, message=failure.message, remedy=failure.remedy)


def _result(result: TrainingResult, *, with_artifacts: bool) -> pb.TrainingResult:
    return pb.TrainingResult(
        lora_uri=result.lora.uri,
        lora_bytes=result.lora.size_bytes,
        lora_digest=result.lora.content_digest,
        held_out_loss_base=result.held_out_loss_base,
        held_out_loss_lora=result.held_out_loss_lora,
        step_time=duration(result.step_time_s),
        artifacts=[artifact_message(artifact) for artifact in result.artifacts] if with_artifacts else [],
        best_step=result.best_step,
        held_out_loss_best=result.held_out_loss_best,
        held_out_loss_zero=result.held_out_loss_zero,
        best_artifact_name=result.best_artifact_name,
        stopped_early=result.stopped_early,
        skipped_steps=result.skipped_steps,
        memory_peak_bytes=result.memory_peak_bytes,
    )


def _step(step: StepMetrics) -> pb.StepMetrics:
    return pb.StepMetrics(
        step=step.step,
        loss=step.loss,
        learning_rate=step.learning_rate,
        gradient_norm=step.gradient_norm,
        duration=duration(step.duration_s),
        skipped=step.skipped,
    )
