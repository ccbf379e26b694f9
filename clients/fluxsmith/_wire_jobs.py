"""Jobs and their events: from messages on the wire to this library's own types and back."""

from datetime import datetime

from fluxsmith._wire import read_enum, read_seconds, read_time
from fluxsmith._wire_config import read_config
from fluxsmith.artifacts import Artifact
from fluxsmith.checkpoints import Checkpoint
from fluxsmith.events import (
    ArtifactPublished,
    CheckpointWritten,
    Event,
    JobWarning,
    PreviewRendered,
    StateChanged,
    StepMetrics,
    StepsCompleted,
    ValidationCompleted,
)
from fluxsmith.training import (
    Fault,
    JobFailure,
    JobState,
    TrainingJob,
    TrainingResult,
)
from fluxsmith.v1 import trainer_pb2


def read_job(message: trainer_pb2.TrainingJob) -> TrainingJob:
    """Translate the state of a job."""
    return TrainingJob(
        id=message.job_id,
        user_id=message.user_id,
        name=message.display_name,
        state=_read_job_state(message.state),
        config=read_config(message.config),
        dataset_id=message.dataset_id,
        held_out_dataset_id=message.held_out_dataset_id,
        create_time=read_time(message, "create_time"),
        start_time=read_time(message, "start_time"),
        end_time=read_time(message, "end_time"),
        step=message.step,
        total_steps=message.total_steps,
        attempt=message.attempt,
        failure=_read_failure(message.failure) if message.HasField("failure") else None,
        result=_read_result(message.result) if message.HasField("result") else None,
        last_sequence=message.last_sequence,
        queue_position=message.queue_position,
        start_while_encoding=message.start_while_encoding,
        priority=message.priority,
        time_left_s=read_seconds(message.time_left) if message.HasField("time_left") else None,
        checkpoint_step=message.checkpoint_step,
        progress_time=read_time(message, "progress_time"),
        first_sequence=message.first_sequence,
    )


def _read_failure(message: trainer_pb2.JobFailure) -> JobFailure:
    return JobFailure(
        fault=read_enum(Fault, trainer_pb2.JobFailureFault.DESCRIPTOR, "JOB_FAILURE_FAULT_", message.fault),
        reason=message.reason,
        message=message.message,
        remedy=message.remedy,
    )


def _read_result(message: trainer_pb2.TrainingResult) -> TrainingResult:
    return TrainingResult(
        lora_uri=message.lora_uri,
        lora_bytes=message.lora_bytes,
        lora_digest=message.lora_digest,
        held_out_loss_base=message.held_out_loss_base if message.HasField("held_out_loss_base") else None,
        held_out_loss_lora=message.held_out_loss_lora if message.HasField("held_out_loss_lora") else None,
        step_time_s=read_seconds(message.step_time) if message.HasField("step_time") else None,
        artifacts=tuple(read_artifact(artifact) for artifact in message.artifacts),
        best_step=message.best_step if message.HasField("best_step") else None,
        held_out_loss_best=message.held_out_loss_best if message.HasField("held_out_loss_best") else None,
        held_out_loss_zero=message.held_out_loss_zero if message.HasField("held_out_loss_zero") else None,
        best_artifact_name=message.best_artifact_name,
        stopped_early=message.stopped_early,
        skipped_steps=message.skipped_steps,
        memory_peak_bytes=message.memory_peak_bytes,
    )


def read_event(message: trainer_pb2.TrainingEvent) -> Event | None:
    """Translate an event; None for a kind that this version of the library does not know."""
    sequence, time = message.sequence, read_time(message, "time")
    match message.WhichOneof("event"):
        case "state_changed":
            moved = message.state_changed
            state = _read_job_state(moved.state)
            return StateChanged(sequence=sequence, time=time, state=state, message=moved.message)
        case "steps_completed":
            steps = tuple(_read_step(step) for step in message.steps_completed.steps)
            total = message.steps_completed.total_steps
            return StepsCompleted(sequence=sequence, time=time, steps=steps, total_steps=total)
        case "validation_completed":
            return _read_validation(message.validation_completed, sequence=sequence, time=time)
        case "artifact_published" | "preview_rendered" | "checkpoint_written":
            return _read_file_event(message)
        case "warning":
            warning = message.warning
            return JobWarning(sequence=sequence, time=time, reason=warning.reason, message=warning.message)
    return None


def _read_validation(
    message: trainer_pb2.ValidationCompleted, *, sequence: int, time: datetime | None
) -> ValidationCompleted:
    zero = message.held_out_loss_zero if message.HasField("held_out_loss_zero") else None
    return ValidationCompleted(
        sequence=sequence, time=time, step=message.step, loss=message.loss, held_out_loss_zero=zero
    )


def _read_file_event(
    message: trainer_pb2.TrainingEvent,
) -> ArtifactPublished | PreviewRendered | CheckpointWritten:
    sequence, time = message.sequence, read_time(message, "time")
    if message.HasField("artifact_published"):
        return ArtifactPublished(sequence=sequence, time=time, **vars(read_artifact(message.artifact_published)))
    if message.HasField("checkpoint_written"):
        checkpoint = read_checkpoint(message.checkpoint_written.checkpoint)
        return CheckpointWritten(sequence=sequence, time=time, checkpoint=checkpoint)
    preview = message.preview_rendered
    image = read_artifact(preview.image)
    return PreviewRendered(
        sequence=sequence, time=time, step=preview.step, prompt=preview.prompt, seed=preview.seed, image=image
    )


def _read_step(message: trainer_pb2.StepMetrics) -> StepMetrics:
    return StepMetrics(
        step=message.step,
        loss=message.loss,
        learning_rate=message.learning_rate,
        gradient_norm=message.gradient_norm,
        duration_s=read_seconds(message.duration),
        skipped=message.skipped,
    )


def read_artifact(message: trainer_pb2.ArtifactPublished) -> Artifact:
    """Translate what is told of a file."""
    return Artifact(
        artifact_name=message.artifact_name,
        uri=message.uri,
        size_bytes=message.size_bytes,
        content_digest=message.content_digest,
    )


def read_checkpoint(message: trainer_pb2.Checkpoint) -> Checkpoint:
    """Translate what is told of a checkpoint."""
    return Checkpoint(
        id=message.checkpoint_id,
        step=message.step,
        create_time=read_time(message, "create_time"),
        uri=message.uri,
        size_bytes=message.size_bytes,
        lora=read_artifact(message.lora),
        held_out_loss=message.held_out_loss if message.HasField("held_out_loss") else None,
    )


def _read_job_state(value: int) -> JobState:
    return read_enum(JobState, trainer_pb2.TrainingJobState.DESCRIPTOR, "TRAINING_JOB_STATE_", value)
