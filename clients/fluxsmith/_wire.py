"""Translation between the messages on the wire and this library's own types. Nothing else here knows protobuf fields.

A thing's own identifier and name lose their prefix on the way in (`job_id` becomes `id`); all other names stay.
Values that a newer service may send and this version does not know become UNKNOWN, or are left out.
"""

import dataclasses
from datetime import UTC, datetime
from enum import StrEnum
from typing import TypeVar

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from fluxsmith.data import Dataset, DatasetState, Sample, SampleProblem, SampleProblemReason
from fluxsmith.errors import FieldViolation, InvalidRequest
from fluxsmith.events import (
    ArtifactPublished,
    Event,
    JobWarning,
    StateChanged,
    StepMetrics,
    StepsCompleted,
    ValidationCompleted,
)
from fluxsmith.training import (
    Fault,
    JobFailure,
    JobState,
    SigmaSampling,
    TargetPreset,
    TrainConfig,
    TrainingJob,
    TrainingResult,
)
from fluxsmith.v1 import encoder_pb2, trainer_pb2

_Enum = TypeVar("_Enum", bound=StrEnum)


def read_dataset(message: encoder_pb2.Dataset) -> Dataset:
    """Translate the state of a dataset."""
    return Dataset(
        id=message.dataset_id,
        name=message.display_name,
        state=_read_enum(DatasetState, encoder_pb2.DatasetState.DESCRIPTOR, "DATASET_STATE_", message.state),
        create_time=_read_time(message, "create_time"),
        sample_count=message.sample_count,
        encoded_count=message.encoded_count,
        cached_count=message.cached_count,
        problems=tuple(_read_problem(problem) for problem in message.problems),
        manifest_digest=message.manifest_digest,
        failure_message=message.failure_message,
    )


def _read_problem(message: encoder_pb2.SampleProblem) -> SampleProblem:
    kinds = encoder_pb2.SampleProblemReason.DESCRIPTOR
    return SampleProblem(
        sample_name=message.sample_name,
        reason=_read_enum(SampleProblemReason, kinds, "SAMPLE_PROBLEM_REASON_", message.reason),
        message=message.message,
    )


def read_sample(message: encoder_pb2.Sample) -> Sample:
    """Translate one stored sample."""
    return Sample(
        name=message.sample_name,
        captions=tuple(message.captions),
        content_digest=message.content_digest,
        size_bytes=message.size_bytes,
    )


def write_config(config: TrainConfig) -> trainer_pb2.TrainConfig:
    """Translate a configuration, leaving unset what is None.

    Raises `InvalidRequest` with every field whose value cannot travel at all; ranges are the trainer's to check.
    """
    violations = []
    message = trainer_pb2.TrainConfig()
    if config.steps is not None and config.epochs is not None:
        violations.append(FieldViolation(field="config.steps", description="steps and epochs exclude each other"))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value is None:
            continue
        try:
            setattr(message, field.name, _write_value(field.name, value))
        except (TypeError, ValueError):
            text = f"{field.name} cannot be {value!r}"
            violations.append(FieldViolation(field=f"config.{field.name}", description=text))
    if violations:
        raise InvalidRequest("the configuration is wrong.", reason="CONFIG_INVALID", violations=tuple(violations))
    return message


def _write_value(name: str, value: object) -> object:
    if name == "sigma_sampling":
        return trainer_pb2.SigmaSampling.Value(f"SIGMA_SAMPLING_{SigmaSampling(str(value))}")
    if name == "targets":
        return trainer_pb2.TargetPreset.Value(f"TARGET_PRESET_{TargetPreset(str(value))}")
    return value


def read_config(message: trainer_pb2.TrainConfig) -> TrainConfig:
    """Translate a configuration; what is unset, or of a kind not known here, becomes None."""
    plain = {
        field.name: getattr(message, field.name)
        for field in dataclasses.fields(TrainConfig)
        if field.name not in {"sigma_sampling", "targets"} and message.HasField(field.name)  # type: ignore[arg-type]
    }
    sampling = _enum_name(trainer_pb2.SigmaSampling.DESCRIPTOR, "SIGMA_SAMPLING_", message.sigma_sampling)
    targets = _enum_name(trainer_pb2.TargetPreset.DESCRIPTOR, "TARGET_PRESET_", message.targets)
    return TrainConfig(
        sigma_sampling=SigmaSampling(sampling) if sampling in set(SigmaSampling) else None,
        targets=TargetPreset(targets) if targets in set(TargetPreset) else None,
        **plain,
    )


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
        create_time=_read_time(message, "create_time"),
        start_time=_read_time(message, "start_time"),
        end_time=_read_time(message, "end_time"),
        step=message.step,
        total_steps=message.total_steps,
        attempt=message.attempt,
        failure=_read_failure(message.failure) if message.HasField("failure") else None,
        result=_read_result(message.result) if message.HasField("result") else None,
        last_sequence=message.last_sequence,
        queue_position=message.queue_position,
    )


def _read_failure(message: trainer_pb2.JobFailure) -> JobFailure:
    return JobFailure(
        fault=_read_enum(Fault, trainer_pb2.JobFailureFault.DESCRIPTOR, "JOB_FAILURE_FAULT_", message.fault),
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
        step_time_s=_read_seconds(message.step_time) if message.HasField("step_time") else None,
    )


def read_event(message: trainer_pb2.TrainingEvent) -> Event | None:
    """Translate an event; None for a kind that this version of the library does not know."""
    sequence, time = message.sequence, _read_time(message, "time")
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
            measured = message.validation_completed
            return ValidationCompleted(sequence=sequence, time=time, step=measured.step, loss=measured.loss)
        case "artifact_published":
            return read_artifact(message.artifact_published, sequence=sequence, time=time)
        case "warning":
            warning = message.warning
            return JobWarning(sequence=sequence, time=time, reason=warning.reason, message=warning.message)
    return None


def _read_step(message: trainer_pb2.StepMetrics) -> StepMetrics:
    return StepMetrics(
        step=message.step,
        loss=message.loss,
        learning_rate=message.learning_rate,
        gradient_norm=message.gradient_norm,
        duration_s=_read_seconds(message.duration),
    )


def read_artifact(
    message: trainer_pb2.ArtifactPublished, *, sequence: int = 0, time: datetime | None = None
) -> ArtifactPublished:
    """Translate what is told of a file."""
    return ArtifactPublished(
        sequence=sequence,
        time=time,
        artifact_name=message.artifact_name,
        uri=message.uri,
        size_bytes=message.size_bytes,
        content_digest=message.content_digest,
    )


def _read_job_state(value: int) -> JobState:
    return _read_enum(JobState, trainer_pb2.TrainingJobState.DESCRIPTOR, "TRAINING_JOB_STATE_", value)


def _read_enum(known: type[_Enum], wire: EnumDescriptor, prefix: str, value: int) -> _Enum:
    name = _enum_name(wire, prefix, value)
    return known(name) if name in set(known) else known("UNKNOWN")


def _enum_name(wire: EnumDescriptor, prefix: str, value: int) -> str:
    known = wire.values_by_number.get(value)
    return known.name.removeprefix(prefix) if known else ""


def _read_time(message: Message, field: str) -> datetime | None:
    if not message.HasField(field):
        return None
    stamp: Timestamp = getattr(message, field)
    return stamp.ToDatetime(tzinfo=UTC)


def _read_seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9
