"""What `src.models` says to arguments and settings that are none, and where its warnings point."""

from __future__ import annotations

from linecache import getline
from typing import Any

import fluxsmith
import pytest
from fluxsmith.errors import InvalidRequest
from fluxsmith.v1 import encoder_pb2 as encoder
from fluxsmith.v1 import trainer_pb2 as trainer
from src.models import FluxLoRATrainingModule, FluxTrainingDataset, InvalidImageFormat, Settings, TextEncodingFailed
from src.models.flux_training_module import train_lora
from src.models.flux_training_utils import estimate_flux_memory_usage, validate_flux_training_config

from tests.clients.recording import Recorder

SAMPLE = {"image": "bm8gaW1hZ2U=", "description": "a dot"}


@pytest.mark.parametrize("image", ["bild\u00e4", "\ud83d", "data:image/png;base64,\u20ac"])
def test_an_image_with_other_letters_than_base64_is_none(image: str) -> None:
    with pytest.raises(InvalidImageFormat, match=r"train_data\[0\] is not base64: .*ASCII"):
        FluxTrainingDataset([{**SAMPLE, "image": image}])


def test_half_a_character_is_no_caption() -> None:
    with pytest.raises(TextEncodingFailed, match=r"^Text encoding failed: train_data\[1\] has half a character"):
        FluxTrainingDataset([SAMPLE, {**SAMPLE, "description": "a dot \ud83d"}])


@pytest.mark.parametrize(
    ("caption", "fault"),
    [("\u200b\u2060", "has no description"), ("a dot\x00", r"has the control character U\+0000 at place 6")],
)
def test_a_caption_that_cannot_be_is_named(caption: str, fault: str) -> None:
    with pytest.raises(TextEncodingFailed, match=rf"train_data\[0\] {fault}"):
        FluxTrainingDataset([{**SAMPLE, "description": caption}])


def test_a_caption_that_people_write_is_taken() -> None:
    caption = "no\u00a0break \U0001f469\u200d\U0001f3a8\nand a second line"
    assert FluxTrainingDataset([{**SAMPLE, "description": caption}])[0][1] == caption


@pytest.mark.parametrize("train_data", [None, 5])
def test_what_is_no_list_of_samples_is_told_by_its_type(train_data: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"train_data is of type {type(train_data).__name__}, not a list"):
        train_lora(train_data, user_id=1)


@pytest.mark.parametrize(
    ("variable", "value"),
    [("FLUX_LORA_RANK", "abc"), ("FLUX_LORA_RANK", ""), ("GRADIENT_CHECKPOINTING", "maybe")],
)
def test_a_variable_of_a_wrong_kind_is_named_with_its_value(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    for call in (
        lambda: train_lora([SAMPLE], user_id=1),
        estimate_flux_memory_usage,
        lambda: validate_flux_training_config(1, 1e-4, 16, 16),
    ):
        with pytest.raises(InvalidRequest, match=f"^{variable} is {value!r}: .* unset it for its default") as caught:
            call()
        assert [violation.field for violation in caught.value.violations] == [variable]


def test_what_a_caller_does_to_an_estimate_stays_with_the_caller(client: fluxsmith.Client) -> None:
    estimate_flux_memory_usage(client=client)["documented_gb"].clear()
    assert estimate_flux_memory_usage(client=client)["documented_gb"]


@pytest.mark.parametrize(
    ("precision", "peak_gb"), [(True, 1), ("fp16", 1), ("bf16", 1), (False, 2), ("no", 2)], ids=str
)
def test_precision_may_have_accelerates_names(
    client: fluxsmith.Client, recorder: Recorder, precision: bool | str, peak_gb: float
) -> None:
    recorder.estimate.parts.add(name="weights", bytes=10**9)
    assert estimate_flux_memory_usage(mixed_precision=precision, client=client)["peak_gb"] == peak_gb


def test_another_precision_is_refused_with_those_there_are() -> None:
    with pytest.raises(InvalidRequest, match=r"mixed_precision is 'fp8'\. Give True, False, "):
        estimate_flux_memory_usage(mixed_precision="fp8")


@pytest.fixture
def warned_of(recorder: Recorder) -> Recorder:
    """Services that warn of a caption and of a job."""
    recorder.encoded.problems.add(
        sample_name="train_data[0]", reason=encoder.SAMPLE_PROBLEM_REASON_CAPTION_TRUNCATED, message="cut", warning=True
    )
    recorder.happened(trainer.TrainingEvent(warning=trainer.JobWarning(reason="SHORT_RUN", message="short")))
    recorder.job.result.lora_uri = "s3://b/k"
    return recorder


def test_warnings_point_to_the_line_that_called_train_lora(client: fluxsmith.Client, warned_of: Recorder) -> None:
    module = FluxLoRATrainingModule(client=client, settings=Settings())
    with pytest.warns(UserWarning, match="QUANTIZE_TEXT_ENCODERS|cut|short") as caught:
        module.train_lora([SAMPLE], user_id=1)
    assert lines_of(caught) == 3 * [(__file__, "module.train_lora([SAMPLE], user_id=1)")]


def test_warnings_point_to_the_line_that_called_cache(client: fluxsmith.Client, warned_of: Recorder) -> None:
    dataset = FluxTrainingDataset([SAMPLE])
    with pytest.warns(UserWarning, match="cut") as caught:
        dataset.cache(client)
    assert lines_of(caught) == [(__file__, "dataset.cache(client)")]


def lines_of(caught: pytest.WarningsRecorder) -> list[tuple[str, str]]:
    return [(warning.filename, getline(warning.filename, warning.lineno).strip()) for warning in caught]
