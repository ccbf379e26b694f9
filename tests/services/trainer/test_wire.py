"""Between protobuf and the domain nothing is forgotten and nothing is changed."""

from __future__ import annotations

import pytest
from fluxsmith.v1 import trainer_pb2 as pb
from google.protobuf.descriptor import EnumDescriptor

from services.common.errors import InvalidInput
from services.trainer.choices import SigmaSampling, TargetPreset
from services.trainer.config import TrainConfig
from services.trainer.jobs import (
    Artifact,
    ArtifactPublished,
    DatasetReference,
    Event,
    Fault,
    Job,
    JobFailure,
    JobState,
    JobWarning,
    StateChanged,
    StepMetrics,
    StepsCompleted,
    StoredEvent,
    TrainingResult,
    ValidationCompleted,
)
from services.trainer.wire import config_from, config_message, event_message, job_message, timestamp

FULL = TrainConfig(
    rank=8,
    alpha=4.5,
    learning_rate=1e-3,
    batch_size=2,
    steps=100,
    seed=2**32 - 1,
    sigma_sampling=SigmaSampling.RESOLUTION_SHIFT,
    targets=TargetPreset.IMAGE_STREAM,
    warmup_steps=3,
    max_gradient_norm=0.5,
    caption_dropout=0.25,
    gradient_checkpointing=False,
    validation_interval_steps=10,
)
ARTIFACT = Artifact(artifact_name="lora.safetensors", uri="s3://b/k", size_bytes=2**33, content_digest="ab" * 32)
STEP = StepMetrics(step=3, loss=0.5, learning_rate=1e-4, gradient_norm=2.0, duration_s=0.25)
EVENTS: list[Event] = [
    StateChanged(state=JobState.RUNNING, message="attempt 1"),
    StepsCompleted(steps=(STEP, STEP), total_steps=10),
    ValidationCompleted(step=0, loss=1.5),
    ArtifactPublished(artifact=ARTIFACT),
    JobWarning(reason="SHORT_RUN", message="few steps"),
]
JOB = Job(
    job_id="job-1",
    tenant="t",
    user_id="u",
    display_name="n",
    dataset=DatasetReference(dataset_id="ds-1", manifest_digest="0"),
    held_out=DatasetReference(dataset_id="ds-2", manifest_digest="1"),
    start_while_encoding=True,
    config=FULL,
    state=JobState.SUCCEEDED,
    create_time_s=1_700_000_000.25,
    start_time_s=1_700_000_001.0,
    end_time_s=1_700_000_002.0,
    step=100,
    total_steps=100,
    attempt=2,
    epoch=3,
    failure=JobFailure(fault=Fault.RESOURCE, reason="R", message="m", remedy="r"),
    result=TrainingResult(lora=ARTIFACT, held_out_loss_base=1.5, held_out_loss_lora=1.0, step_time_s=0.5),
    last_sequence=9,
)


def test_no_field_of_the_configuration_is_forgotten() -> None:
    assert set(pb.TrainConfig.DESCRIPTOR.fields_by_name) == set(TrainConfig.model_fields)


def test_every_value_of_the_full_configuration_differs_from_the_default() -> None:
    same = {name for name in TrainConfig.model_fields if getattr(FULL, name) == getattr(TrainConfig(), name)}
    assert same == {"epochs", "targets"}  # there is one preset, and steps exclude epochs


@pytest.mark.parametrize("config", [FULL, TrainConfig(), TrainConfig(epochs=7), TrainConfig(caption_dropout=0.0)])
def test_configuration_survives_the_way_there_and_back(config: TrainConfig) -> None:
    sent = pb.TrainConfig.FromString(config_message(config).SerializeToString())
    assert config_from(sent) == config


def test_empty_message_means_the_defaults() -> None:
    assert config_from(pb.TrainConfig()) == TrainConfig()


def test_zero_that_was_sent_is_not_taken_for_unset() -> None:
    with pytest.raises(InvalidInput) as caught:
        config_from(pb.TrainConfig(rank=0, batch_size=0))
    assert [violation.field for violation in caught.value.violations] == ["config.rank", "config.batch_size"]


def test_enum_value_of_a_newer_client_is_refused_by_field() -> None:
    with pytest.raises(InvalidInput) as caught:
        config_from(pb.TrainConfig.FromString(pb.TrainConfig(sigma_sampling=99).SerializeToString()))  # type: ignore[arg-type]
    assert caught.value.violations[0].field == "config.sigma_sampling"


@pytest.mark.parametrize(
    ("domain", "wire", "prefix"),
    [
        (JobState, pb.TrainingJobState.DESCRIPTOR, "TRAINING_JOB_STATE_"),
        (Fault, pb.JobFailureFault.DESCRIPTOR, "JOB_FAILURE_FAULT_"),
        (SigmaSampling, pb.SigmaSampling.DESCRIPTOR, "SIGMA_SAMPLING_"),
        (TargetPreset, pb.TargetPreset.DESCRIPTOR, "TARGET_PRESET_"),
    ],
)
def test_enums_have_the_values_of_the_contract(domain: type[JobState], wire: EnumDescriptor, prefix: str) -> None:
    assert {prefix + value.name for value in domain} | {f"{prefix}UNSPECIFIED"} == set(wire.values_by_name)


def test_no_field_of_a_job_is_left_out() -> None:
    message = job_message(JOB, queue_position=4)
    assert {field.name for field, _ in message.ListFields()} == set(pb.TrainingJob.DESCRIPTOR.fields_by_name)
    assert {field.name for field, _ in message.result.ListFields()} == set(pb.TrainingResult.DESCRIPTOR.fields_by_name)
    assert {field.name for field, _ in message.failure.ListFields()} == set(pb.JobFailure.DESCRIPTOR.fields_by_name)


def test_job_without_held_out_data_has_no_losses() -> None:
    result = TrainingResult(lora=ARTIFACT, held_out_loss_base=None, held_out_loss_lora=None, step_time_s=1.0)
    message = job_message(JOB.model_copy(update={"result": result, "held_out": None, "failure": None}))
    assert message.held_out_dataset_id == ""
    assert not message.result.HasField("held_out_loss_base")
    assert not message.HasField("failure")


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.kind)
def test_every_kind_of_event_has_its_message(event: Event) -> None:
    message = event_message(StoredEvent(sequence=5, time_s=1_700_000_000.5, event=event))
    body = getattr(message, message.WhichOneof("event") or "")
    assert message.WhichOneof("event") == event.kind
    assert message.sequence == 5
    assert message.time.ToMilliseconds() == 1_700_000_000_500
    assert {field.name for field, _ in body.ListFields()} >= set(body.DESCRIPTOR.fields_by_name) - {"step"}


def test_events_above_are_all_there_are() -> None:
    kinds = {field.name for field in pb.TrainingEvent.DESCRIPTOR.oneofs_by_name["event"].fields}
    assert {event.kind for event in EVENTS} == kinds


def test_every_measurement_of_a_step_is_sent() -> None:
    message = event_message(StoredEvent(sequence=1, time_s=0.0, event=EVENTS[1])).steps_completed.steps[0]
    assert {field.name for field, _ in message.ListFields()} == set(pb.StepMetrics.DESCRIPTOR.fields_by_name)
    assert message.duration.ToMilliseconds() == 250


def test_time_that_has_not_come_is_unset() -> None:
    assert timestamp(None) is None
    assert not job_message(JOB.model_copy(update={"end_time_s": None})).HasField("end_time")
