"""Between protobuf and the domain nothing is forgotten and nothing is changed."""

from __future__ import annotations

from typing import Any

import pytest
from fluxsmith.v1 import trainer_pb2 as pb
from google.protobuf.descriptor import EnumDescriptor

from services.common.errors import InvalidInput
from services.trainer.config import TrainConfig, parse_config
from services.trainer.config.choices import (
    AdapterType,
    FileDtype,
    GuidanceMode,
    HuberSchedule,
    InitWeights,
    LearningRateSchedule,
    LossFunction,
    LossWeighting,
    Optimizer,
    SigmaSampling,
    TargetPreset,
)
from services.trainer.jobs import (
    Artifact,
    ArtifactPublished,
    Checkpoint,
    CheckpointWritten,
    DatasetReference,
    Event,
    Fault,
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
from services.trainer.wire import (
    checkpoint_message,
    config_fields,
    config_message,
    event_message,
    job_message,
    timestamp,
)

# Another value than the default for every field, with what else it needs.
OTHER: dict[str, dict[str, Any]] = {
    "rank": {"rank": 8},
    "alpha": {"alpha": 4.5},
    "learning_rate": {"learning_rate": 1e-3},
    "batch_size": {"batch_size": 2},
    "steps": {"steps": 100},
    "epochs": {"epochs": 7},
    "seed": {"seed": 2**32 - 1},
    "sigma_sampling": {"sigma_sampling": SigmaSampling.BETA},
    "targets": {"targets": TargetPreset.ALL_LINEAR},
    "warmup_steps": {"warmup_steps": 3},
    "max_gradient_norm": {"max_gradient_norm": 0.5},
    "caption_dropout": {"caption_dropout": 0.25},
    "gradient_checkpointing": {"gradient_checkpointing": False},
    "validation_interval_steps": {"validation_interval_steps": 10},
    "timesteps": {"timesteps": 500},
    "sigma_mean": {"sigma_mean": -0.5},
    "sigma_std": {"sigma_std": 2.0},
    "sigma_shift": {"sigma_shift": 1.5},
    "sigma_mode_scale": {"sigma_mode_scale": -0.25},
    "sigma_beta_a": {"sigma_beta_a": 0.5},
    "sigma_beta_b": {"sigma_beta_b": 3.0},
    "sigma_min": {"sigma_min": 0.25},
    "sigma_max": {"sigma_max": 0.75},
    "sigma_stratified": {"sigma_stratified": True},
    "loss_weighting": {"loss_weighting": LossWeighting.BELL},
    "loss_function": {"loss_function": LossFunction.HUBER},
    "huber_delta": {"huber_delta": 0.5},
    "huber_schedule": {"huber_schedule": HuberSchedule.SNR},
    "masked_loss": {"masked_loss": False},
    "unmasked_weight": {"unmasked_weight": 0.125},
    "guidance": {"guidance": GuidanceMode.SAMPLED},
    "guidance_scale": {"guidance_scale": 2.0},
    "guidance_scale_max": {"guidance_scale_max": 5.0},
    "gradient_accumulation_steps": {"gradient_accumulation_steps": 4},
    "ema_decay": {"ema_decay": 0.75},
    "max_skipped_steps": {"max_skipped_steps": 0},
    "optimizer": {"optimizer": Optimizer.LION},
    "weight_decay": {"weight_decay": 0.0},
    "beta1": {"beta1": 0.5},
    "beta2": {"beta2": 0.0},
    "learning_rate_schedule": {"learning_rate_schedule": LearningRateSchedule.POLYNOMIAL},
    "schedule_cycles": {"schedule_cycles": 5},
    "schedule_power": {"schedule_power": 2.0},
    "final_learning_rate_ratio": {"final_learning_rate_ratio": 0.5},
    "lora_plus_ratio": {"lora_plus_ratio": 16.0},
    "adapter_type": {"adapter_type": AdapterType.LOHA},
    "use_rslora": {"use_rslora": True},
    "adapter_dropout": {"adapter_dropout": 0.125},
    "target_regex": {"target_regex": r".*\.to_[qkv]"},
    "rank_pattern": {"rank_pattern": {r".*\.to_q": 4, r".*\.to_k": 2}},
    "lokr_factor": {"lokr_factor": 8, "adapter_type": AdapterType.LOKR},
    "init_weights": {"init_weights": InitWeights.GAUSSIAN},
    "warm_start_uri": {"warm_start_uri": "s3://bucket/t/jobs/job-1/1/lora.safetensors"},
    "file_dtype": {"file_dtype": FileDtype.BF16},
    "kohya_file": {"kohya_file": False},
    "tag_frequency": {"tag_frequency": True},
    "held_out_share": {"held_out_share": 0.25},
    "early_stopping_patience": {"early_stopping_patience": 3},
    "early_stopping_min_delta": {"early_stopping_min_delta": 0.0625},
    "preview_prompts": {"preview_prompts": ("a cat", "")},
    "preview_interval_steps": {"preview_interval_steps": 50},
    "preview_seed": {"preview_seed": 9},
    "preview_sampling_steps": {"preview_sampling_steps": 4},
    "preview_guidance_scale": {"preview_guidance_scale": 0.0},
    "preview_height_px": {"preview_height_px": 64},
    "preview_width_px": {"preview_width_px": 80},
    "checkpoint_interval_steps": {"checkpoint_interval_steps": 25},
    "checkpoints_kept": {"checkpoints_kept": 5},
    "checkpoint_keep_interval_steps": {"checkpoint_keep_interval_steps": 500},
}
ARTIFACT = Artifact(artifact_name="lora.safetensors", uri="s3://b/k", size_bytes=2**33, content_digest="ab" * 32)
STEP = StepMetrics(step=3, loss=0.5, learning_rate=1e-4, gradient_norm=2.0, duration_s=0.25, skipped=True)
CHECKPOINT = Checkpoint(
    checkpoint_id="000050-3",
    step=50,
    uri="s3://b/manifest.json",
    manifest_digest="cd" * 32,
    size_bytes=2**34,
    lora=ARTIFACT,
    held_out_loss=0.75,
)
EVENTS: list[Event] = [
    StateChanged(state=JobState.RUNNING, message="attempt 1"),
    StepsCompleted(steps=(STEP, STEP), total_steps=10),
    ValidationCompleted(step=0, loss=1.5, held_out_loss_zero=2.25),
    PreviewRendered(step=7, prompt="a cat", seed=9, image=ARTIFACT),
    ArtifactPublished(artifact=ARTIFACT),
    CheckpointWritten(checkpoint=CHECKPOINT),
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
    config=TrainConfig(steps=100),
    state=JobState.RUNNING,
    priority=-5,
    create_time_s=1_700_000_000.25,
    start_time_s=1_700_000_001.0,
    end_time_s=1_700_000_002.0,
    step=60,
    total_steps=100,
    step_time_s=0.5,
    progress_time_s=1_700_000_003.0,
    checkpoint_step=50,
    attempt=2,
    epoch=3,
    failure=JobFailure(fault=Fault.RESOURCE, reason="R", message="m", remedy="r"),
    result=TrainingResult(
        lora=ARTIFACT,
        artifacts=(ARTIFACT,),
        held_out_loss_base=1.5,
        held_out_loss_lora=1.0,
        best_step=90,
        held_out_loss_best=0.75,
        held_out_loss_zero=2.25,
        best_artifact_name="lora-best.safetensors",
        stopped_early=True,
        skipped_steps=2,
        step_time_s=0.5,
        memory_peak_bytes=2**34,
    ),
    last_sequence=9,
)


def config_from(message: pb.TrainConfig) -> TrainConfig:
    """The configuration that a message asks for."""
    return parse_config(config_fields(message))


def test_no_field_of_the_configuration_is_forgotten() -> None:
    assert set(pb.TrainConfig.DESCRIPTOR.fields_by_name) == set(TrainConfig.model_fields)


def test_the_values_above_are_of_every_field_and_no_default() -> None:
    assert set(OTHER) == set(TrainConfig.model_fields)
    assert not [name for name, other in OTHER.items() if other[name] == getattr(TrainConfig(), name)]


@pytest.mark.parametrize(
    "fields", [*OTHER.values(), {}, {"caption_dropout": 0.0}], ids=lambda fields: next(iter(fields), "")
)
def test_configuration_survives_the_way_there_and_back(fields: dict[str, Any]) -> None:
    config = TrainConfig(**fields)
    sent = pb.TrainConfig.FromString(config_message(config).SerializeToString())
    assert config_from(sent) == config
    assert {field.name for field, _ in sent.ListFields()} >= set(fields)


@pytest.mark.parametrize(("name", "fields"), OTHER.items(), ids=list(OTHER))
def test_a_field_alone_on_the_wire_reaches_the_configuration(name: str, fields: dict[str, Any]) -> None:
    full = config_message(TrainConfig(**fields))
    for descriptor in pb.TrainConfig.DESCRIPTOR.fields:
        if descriptor.name not in fields:
            full.ClearField(descriptor.name)  # type: ignore[arg-type]
    assert getattr(config_from(full), name) == fields[name]


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
        (LossWeighting, pb.LossWeighting.DESCRIPTOR, "LOSS_WEIGHTING_"),
        (LossFunction, pb.LossFunction.DESCRIPTOR, "LOSS_FUNCTION_"),
        (HuberSchedule, pb.HuberSchedule.DESCRIPTOR, "HUBER_SCHEDULE_"),
        (GuidanceMode, pb.GuidanceMode.DESCRIPTOR, "GUIDANCE_MODE_"),
        (Optimizer, pb.Optimizer.DESCRIPTOR, "OPTIMIZER_"),
        (LearningRateSchedule, pb.LearningRateSchedule.DESCRIPTOR, "LEARNING_RATE_SCHEDULE_"),
        (AdapterType, pb.AdapterType.DESCRIPTOR, "ADAPTER_TYPE_"),
        (InitWeights, pb.InitWeights.DESCRIPTOR, "INIT_WEIGHTS_"),
        (FileDtype, pb.FileDtype.DESCRIPTOR, "FILE_DTYPE_"),
    ],
)
def test_enums_have_the_values_of_the_contract(domain: type[JobState], wire: EnumDescriptor, prefix: str) -> None:
    assert {prefix + value.name for value in domain} | {f"{prefix}UNSPECIFIED"} == set(wire.values_by_name)


def test_no_field_of_a_job_is_left_out() -> None:
    message = job_message(JOB, queue_position=4)
    assert {field.name for field, _ in message.ListFields()} == set(pb.TrainingJob.DESCRIPTOR.fields_by_name)
    assert {field.name for field, _ in message.result.ListFields()} == set(pb.TrainingResult.DESCRIPTOR.fields_by_name)
    assert {field.name for field, _ in message.failure.ListFields()} == set(pb.JobFailure.DESCRIPTOR.fields_by_name)


def test_time_left_is_that_of_the_steps_to_come_and_only_while_they_come() -> None:
    assert job_message(JOB).time_left.ToMilliseconds() == 20_000
    for update in ({"state": JobState.PAUSED}, {"step_time_s": None}, {"total_steps": 0}):
        assert not job_message(JOB.model_copy(update=update)).HasField("time_left")


def test_progress_is_told_only_while_a_worker_has_the_job() -> None:
    for state in JobState:
        held = state in {JobState.RUNNING, JobState.PAUSING, JobState.CANCELLING}
        assert job_message(JOB.model_copy(update={"state": state})).HasField("progress_time") == held


def test_no_field_of_a_checkpoint_is_left_out() -> None:
    message = checkpoint_message(CHECKPOINT, 1_700_000_000.5)
    assert {field.name for field, _ in message.ListFields()} == set(pb.Checkpoint.DESCRIPTOR.fields_by_name)
    assert message.create_time.ToMilliseconds() == 1_700_000_000_500
    unmeasured = CHECKPOINT.model_copy(update={"held_out_loss": None})
    assert not checkpoint_message(unmeasured, 0.0).HasField("held_out_loss")


def test_job_without_held_out_data_has_no_losses() -> None:
    result = TrainingResult(lora=ARTIFACT, held_out_loss_base=None, held_out_loss_lora=None, step_time_s=1.0)
    message = job_message(JOB.model_copy(update={"result": result, "held_out": None, "failure": None}))
    assert message.held_out_dataset_id == ""
    assert not message.result.HasField("held_out_loss_base")
    assert not message.result.HasField("held_out_loss_zero")
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
