"""Translation of messages: nothing is lost on the way, and what a newer service may send does no harm."""

import dataclasses
from datetime import UTC, datetime

import pytest
from fluxsmith import (
    DatasetState,
    Fault,
    JobState,
    SampleProblemReason,
    SigmaSampling,
    StateChanged,
    StepsCompleted,
    TargetPreset,
    TrainConfig,
)
from fluxsmith._wire import read_config, read_dataset, read_event, read_job, write_config
from fluxsmith.errors import InvalidRequest
from fluxsmith.v1 import encoder_pb2, trainer_pb2

FULL = TrainConfig(
    rank=8,
    alpha=4.5,
    learning_rate=1e-3,
    batch_size=2,
    steps=100,
    seed=2**32 - 1,
    sigma_sampling=SigmaSampling.UNIFORM,
    targets=TargetPreset.IMAGE_STREAM,
    warmup_steps=0,
    max_gradient_norm=1.0,
    caption_dropout=0.0,
    gradient_checkpointing=False,
    validation_interval_steps=10,
)


@pytest.mark.parametrize("config", [TrainConfig(), FULL, TrainConfig(epochs=3)])
def test_config_survives_the_way_there_and_back(config: TrainConfig) -> None:
    assert read_config(write_config(config)) == config


def test_config_has_the_fields_of_the_contract() -> None:
    ours = {field.name for field in dataclasses.fields(TrainConfig)}
    assert ours == set(trainer_pb2.TrainConfig.DESCRIPTOR.fields_by_name)


@pytest.mark.parametrize(
    ("ours", "wire"),
    [
        (DatasetState, encoder_pb2.DatasetState),
        (SampleProblemReason, encoder_pb2.SampleProblemReason),
        (JobState, trainer_pb2.TrainingJobState),
        (Fault, trainer_pb2.JobFailureFault),
        (SigmaSampling, trainer_pb2.SigmaSampling),
        (TargetPreset, trainer_pb2.TargetPreset),
    ],
)
def test_enums_have_the_values_of_the_contract(ours: type, wire: type) -> None:
    names = [value.name for value in wire.DESCRIPTOR.values]  # type: ignore[attr-defined]
    prefix = names[0].removesuffix("UNSPECIFIED")
    assert {name.removeprefix(prefix) for name in names[1:]} == set(ours) - {"UNKNOWN"}  # type: ignore[call-overload]


def test_plain_text_stands_for_an_enum_value() -> None:
    message = write_config(TrainConfig(sigma_sampling="UNIFORM"))  # type: ignore[arg-type]
    assert message.sigma_sampling == trainer_pb2.SIGMA_SAMPLING_UNIFORM


def test_values_that_cannot_travel_are_all_named() -> None:
    config = TrainConfig(rank=2**40, alpha="much", sigma_sampling="WILD")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest) as caught:
        write_config(config)
    assert [violation.field for violation in caught.value.violations] == [
        "config.rank",
        "config.alpha",
        "config.sigma_sampling",
    ]


def test_steps_and_epochs_exclude_each_other() -> None:
    with pytest.raises(InvalidRequest, match="steps and epochs exclude each other"):
        write_config(TrainConfig(steps=1, epochs=1))


def test_state_of_a_newer_service_is_unknown() -> None:
    job = read_job(trainer_pb2.TrainingJob(job_id="j", state=99))  # type: ignore[arg-type]
    assert job.state is JobState.UNKNOWN
    assert not job.state.ended


def test_event_of_a_newer_service_is_left_out() -> None:
    assert read_event(trainer_pb2.TrainingEvent(sequence=7)) is None


def test_time_is_in_utc_and_absent_when_unset() -> None:
    message = encoder_pb2.Dataset(dataset_id="d")
    assert read_dataset(message).create_time is None
    message.create_time.FromJsonString("2026-01-02T03:04:05Z")
    assert read_dataset(message).create_time == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_held_out_loss_is_none_without_a_held_out_dataset() -> None:
    message = trainer_pb2.TrainingJob(job_id="j", result=trainer_pb2.TrainingResult(lora_uri="s3://b/k"))
    result = read_job(message).result
    assert result is not None
    assert result.held_out_loss_base is None
    assert result.step_time_s is None


def test_events_print_as_readable_lines() -> None:
    step = trainer_pb2.StepMetrics(step=20, loss=0.5)
    steps = trainer_pb2.TrainingEvent(sequence=1)
    steps.steps_completed.CopyFrom(trainer_pb2.StepsCompleted(steps=[step], total_steps=200))
    moved = trainer_pb2.TrainingEvent(sequence=2)
    moved.state_changed.state = trainer_pb2.TRAINING_JOB_STATE_RUNNING
    events = [read_event(steps), read_event(moved)]
    assert isinstance(events[0], StepsCompleted)
    assert isinstance(events[1], StateChanged)
    assert [str(event) for event in events] == ["step 20 of 200: loss 0.5000", "running"]
