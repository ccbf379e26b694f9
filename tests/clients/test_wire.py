"""Translation of messages: nothing is lost on the way, and what a newer service may send does no harm."""

import dataclasses
from datetime import UTC, datetime

import pytest
from fluxsmith import (
    AlphaPolicy,
    Dataset,
    DatasetState,
    EncodingOptions,
    EncodingProgress,
    Fault,
    JobState,
    LatentForm,
    Sample,
    SampleProblem,
    SampleProblemReason,
    SigmaSampling,
    StateChanged,
    StepsCompleted,
    TargetPreset,
    TrainConfig,
    TrainingJob,
)
from fluxsmith._wire_config import read_config, write_config
from fluxsmith._wire_datasets import read_dataset, read_options, read_sample, write_options
from fluxsmith._wire_jobs import read_event, read_job
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


FULL_OPTIONS = EncodingOptions(
    resolutions_px=(512, 768),
    flip=False,
    bucket_step_px=64,
    upscale=True,
    random_crops=8,
    crop_seed=2**32 - 1,
    latent_form=LatentForm.MEAN,
    alpha_policy=AlphaPolicy.MASK,
    background_color="#808080",
    trigger_word="sks",
    skip_bad_samples=True,
    max_bad_share=0.0,
)


@pytest.mark.parametrize(
    "options", [EncodingOptions(), FULL_OPTIONS, EncodingOptions(resolution_px=64, skip_bad_samples=False)]
)
def test_options_survive_the_way_there_and_back(options: EncodingOptions) -> None:
    assert read_options(write_options(options)) == options


# Names that differ from those of the contract, by type.
RENAMED = {
    EncodingOptions: {"skip_bad_samples": "bad_sample_policy"},
    EncodingProgress: {"samples_per_s": "samples_per_second", "elapsed_s": "elapsed", "remaining_s": "remaining"},
    Dataset: {"id": "dataset_id", "name": "display_name"},
    Sample: {"name": "sample_name"},
    TrainingJob: {"id": "job_id", "name": "display_name"},
}


@pytest.mark.parametrize(
    ("ours", "wire"),
    [
        (EncodingOptions, encoder_pb2.EncodingOptions),
        (EncodingProgress, encoder_pb2.EncodingProgress),
        (Dataset, encoder_pb2.Dataset),
        (Sample, encoder_pb2.Sample),
        (SampleProblem, encoder_pb2.SampleProblem),
        (TrainingJob, trainer_pb2.TrainingJob),
    ],
)
def test_types_have_the_fields_of_the_contract(ours: type, wire: type) -> None:
    names = {RENAMED.get(ours, {}).get(field.name, field.name) for field in dataclasses.fields(ours)}
    assert names == set(wire.DESCRIPTOR.fields_by_name)  # type: ignore[attr-defined]


def test_dataset_loses_nothing_on_the_way() -> None:
    problem = encoder_pb2.SampleProblem(sample_name="a.png", reason=7, message="twice", warning=True)  # type: ignore[arg-type]
    message = encoder_pb2.Dataset(
        dataset_id="d", state=encoder_pb2.DATASET_STATE_ENCODING, problems=[problem], problem_count=101
    )
    message.progress.MergeFrom(
        encoder_pb2.EncodingProgress(done_count=12, read_bytes=3, written_bytes=4, samples_per_second=1.5)
    )
    message.progress.elapsed.FromMilliseconds(8500)
    message.progress.remaining.FromMilliseconds(0)
    message.options.MergeFrom(write_options(FULL_OPTIONS))
    told = SampleProblem(sample_name="a.png", reason=SampleProblemReason.DUPLICATE, message="twice", warning=True)
    assert read_dataset(message) == Dataset(
        id="d",
        state=DatasetState.ENCODING,
        problems=(told,),
        problem_count=101,
        progress=EncodingProgress(
            done_count=12, read_bytes=3, written_bytes=4, samples_per_s=1.5, elapsed_s=8.5, remaining_s=0.0
        ),
        options=FULL_OPTIONS,
    )


def test_dataset_never_encoded_has_neither_progress_nor_options() -> None:
    dataset = read_dataset(encoder_pb2.Dataset(dataset_id="d"))
    assert (dataset.progress, dataset.options) == (None, None)


def test_sample_loses_nothing_on_the_way() -> None:
    problem = encoder_pb2.SampleProblem(sample_name="a.png", reason=9, message="gone")  # type: ignore[arg-type]
    message = encoder_pb2.Sample(
        sample_name="a.png", captions=["a cat"], content_digest="0", size_bytes=5, repeats=3, problems=[problem]
    )
    told = SampleProblem(sample_name="a.png", reason=SampleProblemReason.ORIGINAL_LOST, message="gone")
    assert read_sample(message) == Sample(
        name="a.png", captions=("a cat",), content_digest="0", size_bytes=5, repeats=3, problems=(told,)
    )


def test_options_that_cannot_travel_are_all_named() -> None:
    options = EncodingOptions(resolutions_px=512, crop_seed=2**70, latent_form="WILD", skip_bad_samples="yes")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest) as caught:
        write_options(options)
    assert {violation.field for violation in caught.value.violations} == {
        "options.resolutions_px",
        "options.crop_seed",
        "options.latent_form",
        "options.skip_bad_samples",
    }


def test_one_and_several_resolutions_exclude_each_other() -> None:
    with pytest.raises(InvalidRequest, match="resolution_px and resolutions_px exclude each other"):
        write_options(EncodingOptions(resolution_px=512, resolutions_px=(512, 768)))


def test_option_of_a_newer_service_is_left_out() -> None:
    message = encoder_pb2.EncodingOptions(latent_form=99, bad_sample_policy=99)  # type: ignore[arg-type]
    assert read_options(message) == EncodingOptions()


@pytest.mark.parametrize(
    ("ours", "wire"),
    [
        (DatasetState, encoder_pb2.DatasetState),
        (SampleProblemReason, encoder_pb2.SampleProblemReason),
        (LatentForm, encoder_pb2.LatentForm),
        (AlphaPolicy, encoder_pb2.AlphaPolicy),
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


def test_job_tells_whether_it_may_start_early() -> None:
    assert read_job(trainer_pb2.TrainingJob(job_id="j", start_while_encoding=True)).start_while_encoding


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
