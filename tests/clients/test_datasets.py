"""Datasets: what options and progress become on the wire, and where the pages of a contact sheet go."""

import asyncio
import inspect
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from fluxsmith import (
    AlphaPolicy,
    AsyncClient,
    Client,
    DatasetPhase,
    DatasetProgress,
    Datasets,
    DatasetState,
    EncodingKeywords,
    EncodingOptions,
    errors,
)
from fluxsmith.v1 import encoder_pb2, trainer_pb2

from tests.clients.recording import CONTENT, Recorder

FIELDS = inspect.signature(EncodingOptions).parameters


def test_every_encoding_option_is_a_keyword() -> None:
    assert get_type_hints(EncodingKeywords) == get_type_hints(EncodingOptions)


@pytest.mark.parametrize("method", [Datasets.encode, Datasets.create_from, Datasets.create_from_folder])
def test_keyword_that_does_not_exist_is_told_with_the_nearest(method: Any) -> None:
    with pytest.raises(TypeError, match=f"{method.__name__}.*'flipp' .did you mean flip"):
        method(Datasets, "d", flipp=True)


# One value of each option, none of them the default.
EACH: dict[str, Any] = {
    "resolution_px": 512,
    "resolutions_px": (512, 768),
    "flip": False,
    "bucket_step_px": 64,
    "upscale": True,
    "random_crops": 2,
    "crop_seed": 7,
    "latent_form": "MEAN",
    "alpha_policy": "MASK",
    "background_color": "#808080",
    "trigger_word": "sks",
    "skip_bad_samples": False,
    "max_bad_share": 0.0,
}


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("call", ["encode", "create_from_folder"])
def test_a_keyword_reaches_the_encoder(client: Client, recorder: Recorder, folder: Path, call: str, name: str) -> None:
    given = {name: EACH[name]}
    getattr(client.datasets, call)("d" if call == "encode" else folder, **given)
    [request] = recorder.asked(encoder_pb2.EncodeDatasetRequest)
    recorder.requests.clear()
    client.datasets.encode("d", options=EncodingOptions(**given))
    assert recorder.asked(encoder_pb2.EncodeDatasetRequest) == [request]
    assert len(request.options.ListFields()) == 1


def test_keywords_go_before_the_options_they_come_with(client: Client, recorder: Recorder) -> None:
    style = EncodingOptions(flip=True, random_crops=4, alpha_policy=AlphaPolicy.MASK, trigger_word="sks")
    client.datasets.encode("d", options=style, flip=False, random_crops=2)
    [request] = recorder.asked(encoder_pb2.EncodeDatasetRequest)
    assert request == encoder_pb2.EncodeDatasetRequest(
        dataset_id="d",
        options=encoder_pb2.EncodingOptions(
            flip=False, random_crops=2, alpha_policy=encoder_pb2.ALPHA_POLICY_MASK, trigger_word="sks"
        ),
    )


def test_options_that_cannot_travel_are_told_before_anything_is_sent(
    client: Client, recorder: Recorder, folder: Path
) -> None:
    with pytest.raises(errors.InvalidRequest, match=r"options\.resolution_px: is 'wide', not a whole number"):
        client.datasets.create_from_folder(folder, resolution_px="wide")  # type: ignore[arg-type]
    assert not recorder.requests


def test_a_job_may_start_while_its_folder_is_being_encoded(client: Client, recorder: Recorder, folder: Path) -> None:
    dataset = client.datasets.create_from_folder(folder, wait=False)
    client.train(dataset, steps=10, start_while_encoding=True)
    assert dataset.state is DatasetState.ENCODING
    assert not recorder.asked(encoder_pb2.WatchDatasetRequest)
    [request] = recorder.asked(trainer_pb2.CreateTrainingJobRequest)
    assert request.start_while_encoding


def test_a_job_waits_for_its_dataset_unless_told(client: Client, recorder: Recorder) -> None:
    client.train("d", steps=10)
    [request] = recorder.asked(trainer_pb2.CreateTrainingJobRequest)
    assert not request.start_while_encoding


def test_progress_has_speed_and_time_left_and_counts_what_was_left_out(client: Client, recorder: Recorder) -> None:
    recorder.encoding.sample_count = 4
    recorder.encoding.progress.done_count, recorder.encoding.progress.samples_per_second = 3, 2.0
    recorder.encoding.progress.remaining.FromMilliseconds(500)
    recorder.encoded.sample_count, recorder.encoded.encoded_count, recorder.encoded.cached_count = 4, 3, 1
    told: list[DatasetProgress] = []
    client.datasets.wait("d", on_progress=told.append)
    moving, ready = told
    assert (moving.phase, moving.done_count, moving.total_count) == (DatasetPhase.ENCODE, 3, 4)
    assert moving.encoding is not None
    assert (moving.encoding.samples_per_s, moving.encoding.remaining_s) == (2.0, 0.5)
    assert ready == DatasetProgress(phase=DatasetPhase.ENCODE, done_count=4, total_count=4, cached_count=1)


def failed(*, warning: bool) -> encoder_pb2.Dataset:
    problem = encoder_pb2.SampleProblem(sample_name="a.png", message="is wrong", warning=warning)
    return encoder_pb2.Dataset(dataset_id="d", state=encoder_pb2.DATASET_STATE_FAILED, problems=[problem])


@pytest.mark.parametrize("warning", [False, True])
def test_only_a_dataset_with_bad_samples_is_removed_again(
    client: Client, recorder: Recorder, folder: Path, warning: bool
) -> None:
    recorder.encoded = failed(warning=warning)
    with pytest.raises(errors.DatasetFailed):
        client.datasets.create_from_folder(folder)
    assert bool(recorder.asked(encoder_pb2.DeleteDatasetRequest)) is not warning


def test_pages_of_a_contact_sheet_lie_beside_the_first(client: Client, recorder: Recorder, tmp_path: Path) -> None:
    recorder.sheet_pages = 3
    written = client.datasets.contact_sheet("d", tmp_path / "ink.v1.png", samples_per_page=50)
    assert [path.name for path in written] == ["ink.v1.png", "ink.v1-2.png", "ink.v1-3.png"]
    assert sorted(tmp_path.iterdir()) == sorted(written)
    assert {path.read_bytes() for path in written} == {CONTENT}
    asked = recorder.asked(encoder_pb2.RenderContactSheetRequest)
    assert asked == [
        encoder_pb2.RenderContactSheetRequest(dataset_id="d", page_size=50, page_token=token)
        for token in ("", "2", "3")
    ]


def test_contact_sheet_tells_no_options_from_default_ones(client: Client, recorder: Recorder, tmp_path: Path) -> None:
    for options in (None, EncodingOptions()):
        client.datasets.contact_sheet("d", tmp_path / "x.png", options=options)
    asked = recorder.asked(encoder_pb2.RenderContactSheetRequest)
    assert [request.HasField("options") for request in asked] == [False, True]


def test_pages_are_drawn_only_when_asked_for(client: Client, recorder: Recorder) -> None:
    recorder.sheet_pages = 2
    pages = client.datasets.render("d")
    assert next(pages).uri == "s3://b/k"
    assert len(recorder.requests) == 1


@pytest.mark.parametrize("count", [0, 101, -1, "many", 2.5])
def test_samples_a_page_out_of_range_are_refused_here(
    client: Client, recorder: Recorder, tmp_path: Path, count: Any
) -> None:
    with pytest.raises(errors.InvalidRequest, match=r"samples_per_page is .*, not a whole number from 1 to 100"):
        client.datasets.contact_sheet("d", tmp_path / "x.png", samples_per_page=count)
    assert not recorder.requests


def test_dataset_that_was_changed_right_after_its_encoding_is_no_endless_wait(
    client: Client, recorder: Recorder
) -> None:
    recorder.encoded.state = encoder_pb2.DATASET_STATE_OPEN
    with pytest.raises(errors.FailedPrecondition, match="right after it was encoded") as caught:
        client.datasets.wait("d")
    assert (caught.value.reason, caught.value.remedy) == ("DATASET_CHANGED", "Encode it again.")


def test_dataset_of_a_task_that_is_cancelled_is_removed(recorder: Recorder, folder: Path) -> None:
    recorder.encoded = recorder.encoding  # for ever

    async def main() -> None:
        async with AsyncClient(encoder=recorder.address, trainer=recorder.address) as client:
            task = asyncio.create_task(client.datasets.create_from_folder(folder))
            while not recorder.asked(encoder_pb2.WatchDatasetRequest):
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    assert recorder.asked(encoder_pb2.DeleteDatasetRequest)


def test_dataset_is_removed_again_when_the_callers_own_code_fails(
    client: Client, recorder: Recorder, folder: Path
) -> None:
    def broken(_: DatasetProgress) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        client.datasets.create_from_folder(folder, on_progress=broken)
    assert recorder.asked(encoder_pb2.DeleteDatasetRequest)
