"""What `src.models` says to arguments and settings that are none."""

from __future__ import annotations

import fluxsmith
import pytest
from fluxsmith.errors import InvalidRequest
from src.models.flux_training_module import train_lora
from src.models.flux_training_utils import estimate_flux_memory_usage, validate_flux_training_config

from tests.clients.recording import Recorder

SAMPLE = {"image": "bm8gaW1hZ2U=", "description": "a dot"}


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
