"""Translation of messages: nothing is lost on the way, and what a newer service may send does no harm."""

import dataclasses
from datetime import UTC, datetime
from typing import Any

import pytest
from fluxsmith import (
    AlphaPolicy,
    Artifact,
    ArtifactPublished,
    Checkpoint,
    CheckpointWritten,
    Dataset,
    DatasetState,
    EncodingOptions,
    EncodingProgress,
    Fault,
    JobState,
    LatentForm,
    PreviewRendered,
    Sample,
    SampleProblem,
    SampleProblemReason,
    StateChanged,
    StepMetrics,
    StepsCompleted,
    TrainingJob,
    TrainingResult,
    ValidationCompleted,
)
from fluxsmith._wire_datasets import read_dataset, read_options, read_sample, write_options
from fluxsmith._wire_jobs import read_event, read_job
from fluxsmith.errors import InvalidRequest
from fluxsmith.v1 import encoder_pb2, trainer_pb2

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
    TrainingJob: {"id": "job_id", "name": "display_name", "time_left_s": "time_left"},
    Checkpoint: {"id": "checkpoint_id"},
    TrainingResult: {"step_time_s": "step_time"},
    StepMetrics: {"duration_s": "duration"},
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
        (TrainingResult, trainer_pb2.TrainingResult),
        (Artifact, trainer_pb2.ArtifactPublished),
        (StepMetrics, trainer_pb2.StepMetrics),
        (Checkpoint, trainer_pb2.Checkpoint),
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
    with pytest.raises(InvalidRequest, match="resolution_px and resolutions_px exclude each other") as caught:
        write_options(EncodingOptions(resolution_px=512, resolutions_px=(512, 768)))
    assert caught.value.reason == "OPTIONS_INVALID"


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
    ],
)
def test_enums_have_the_values_of_the_contract(ours: type, wire: type) -> None:
    names = [value.name for value in wire.DESCRIPTOR.values]  # type: ignore[attr-defined]
    prefix = names[0].removesuffix("UNSPECIFIED")
    assert {name.removeprefix(prefix) for name in names[1:]} == set(ours) - {"UNKNOWN"}  # type: ignore[call-overload]


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
    assert result.held_out_loss_zero is None
    assert result.step_time_s is None


@pytest.mark.parametrize("zero", [None, 2.5])
def test_measurement_has_its_yardstick_where_it_is_told(zero: float | None) -> None:
    told = trainer_pb2.ValidationCompleted(step=2, loss=0.5, held_out_loss_zero=zero)
    event = read_event(trainer_pb2.TrainingEvent(sequence=1, validation_completed=told))
    assert event == ValidationCompleted(sequence=1, step=2, loss=0.5, held_out_loss_zero=zero)


LORA = Artifact(artifact_name="lora.safetensors", uri="s3://b/k", size_bytes=3, content_digest="0")


def test_result_loses_nothing_on_the_way() -> None:
    file = trainer_pb2.ArtifactPublished(**vars(LORA))
    message = trainer_pb2.TrainingResult(
        lora_uri="s3://b/k", artifacts=[file], best_step=0, stopped_early=True, skipped_steps=2, memory_peak_bytes=9
    )
    message.held_out_loss_best = 0.5
    message.held_out_loss_zero = 2.5
    message.best_artifact_name = "lora-best.safetensors"
    result = read_job(trainer_pb2.TrainingJob(job_id="j", result=message)).result
    assert result == TrainingResult(
        lora_uri="s3://b/k",
        lora_bytes=0,
        lora_digest="",
        artifacts=(LORA,),
        best_step=0,
        held_out_loss_best=0.5,
        held_out_loss_zero=2.5,
        best_artifact_name="lora-best.safetensors",
        stopped_early=True,
        skipped_steps=2,
        memory_peak_bytes=9,
    )


@pytest.mark.parametrize(
    ("step", "prompt", "line"),
    [
        (0, "a cat", "preview before the first step: lora.safetensors (a cat)"),
        (0, " ", "preview before the first step: lora.safetensors (empty prompt)"),
        (50, "a cat\nin the snow", "preview after step 50: lora.safetensors (a cat in the snow)"),
        (1, "cat " * 20, f"preview after step 1: lora.safetensors ({'cat ' * 13}cat...)"),
    ],
)
def test_preview_prints_as_one_line(step: int, prompt: str, line: str) -> None:
    message = trainer_pb2.TrainingEvent(sequence=1)
    image = trainer_pb2.ArtifactPublished(**vars(LORA))
    message.preview_rendered.CopyFrom(trainer_pb2.PreviewRendered(step=step, prompt=prompt, seed=7, image=image))
    event = read_event(message)
    assert isinstance(event, PreviewRendered)
    assert (event.step, event.prompt, event.seed, event.image) == (step, prompt, 7, LORA)
    assert str(event) == line


def test_checkpoint_loses_nothing_on_the_way() -> None:
    file = trainer_pb2.ArtifactPublished(**vars(LORA))
    message = trainer_pb2.Checkpoint(checkpoint_id="50-1", step=50, uri="s3://b/m", size_bytes=9, lora=file)
    message.create_time.FromJsonString("2026-01-02T03:04:05Z")
    message.held_out_loss = 0.25
    written = trainer_pb2.CheckpointWritten(checkpoint=message)
    event = read_event(trainer_pb2.TrainingEvent(sequence=4, checkpoint_written=written))
    checkpoint = Checkpoint(
        id="50-1",
        step=50,
        create_time=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        uri="s3://b/m",
        size_bytes=9,
        lora=LORA,
        held_out_loss=0.25,
    )
    assert event == CheckpointWritten(sequence=4, checkpoint=checkpoint)
    assert str(event) == "checkpoint after step 50"


def test_job_loses_nothing_of_its_progress() -> None:
    message = trainer_pb2.TrainingJob(job_id="j", priority=-5, checkpoint_step=50, first_sequence=7)
    message.time_left.FromMilliseconds(1500)
    message.progress_time.FromJsonString("2026-01-02T03:04:05Z")
    job = read_job(message)
    assert (job.priority, job.checkpoint_step, job.first_sequence, job.time_left_s) == (-5, 50, 7, 1.5)
    assert job.progress_time == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert read_job(trainer_pb2.TrainingJob(job_id="j")).time_left_s is None


def test_published_file_is_told_with_its_moment() -> None:
    message = trainer_pb2.TrainingEvent(sequence=4, artifact_published=trainer_pb2.ArtifactPublished(**vars(LORA)))
    assert read_event(message) == ArtifactPublished(sequence=4, **vars(LORA))


@pytest.mark.parametrize(
    ("second", "line"),
    [
        ({"loss": float("nan"), "skipped": True}, "step 2 of 9: loss 0.5000, 1 skipped"),
        ({"loss": 7.0, "skipped": True}, "step 2 of 9: loss 0.5000, 1 skipped"),
        ({"loss": float("inf")}, "step 2 of 9: loss 0.5000"),
    ],
)
def test_skipped_steps_do_not_spoil_the_mean(second: dict[str, Any], line: str) -> None:
    steps = [trainer_pb2.StepMetrics(step=1, loss=0.5), trainer_pb2.StepMetrics(step=2, **second)]
    message = trainer_pb2.TrainingEvent(steps_completed=trainer_pb2.StepsCompleted(steps=steps, total_steps=9))
    assert str(read_event(message)) == line


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
