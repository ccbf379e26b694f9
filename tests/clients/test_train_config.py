"""The configuration: no field is forgotten on any of its ways, and what cannot travel is told."""

import dataclasses
from collections.abc import Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType, NoneType
from typing import Any, get_args, get_type_hints

import fluxsmith
import pytest
from fluxsmith import TrainConfig, TrainKeywords, choices
from fluxsmith._wire_config import read_config, write_config
from fluxsmith.errors import InvalidRequest
from fluxsmith.v1 import trainer_pb2

from tests.clients.recording import Recorder

SOME: Mapping[Any, Any] = {
    int: 2**31 - 1,
    float: 0.5,
    bool: False,
    str: r"s3://b/k\d",
    Sequence[str]: ("a cat", ""),
    Mapping[str, int]: {r"to_[qkv]": 4},
}
KINDS = {
    name: next(kind for kind in get_args(hint) if kind is not NoneType)
    for name, hint in get_type_hints(TrainConfig).items()
}
FULL = {name: SOME[kind] if kind in SOME else list(kind)[-1] for name, kind in KINDS.items() if name != "epochs"}
FULL_CONFIG = TrainConfig(**FULL)
CHOICES = [kind for kind in vars(choices).values() if isinstance(kind, type) and kind.__module__ == choices.__name__]


@pytest.mark.parametrize("config", [TrainConfig(), FULL_CONFIG, TrainConfig(epochs=3, seed=2**32 - 1)])
def test_config_survives_the_way_there_and_back(config: TrainConfig) -> None:
    assert read_config(write_config(config)) == config


def test_every_field_of_a_full_config_is_sent() -> None:
    assert {field.name for field, _ in write_config(FULL_CONFIG).ListFields()} == set(FULL)


def test_config_and_keywords_have_the_fields_of_the_contract() -> None:
    assert set(KINDS) == set(trainer_pb2.TrainConfig.DESCRIPTOR.fields_by_name)
    assert get_type_hints(TrainKeywords) == get_type_hints(TrainConfig)


@pytest.mark.parametrize("ours", CHOICES, ids=lambda kind: kind.__name__)
def test_choices_are_those_of_the_contract(ours: type[StrEnum]) -> None:
    names = [value.name for value in trainer_pb2.DESCRIPTOR.enum_types_by_name[ours.__name__].values]
    prefix = names[0].removesuffix("UNSPECIFIED")
    assert [name.removeprefix(prefix) for name in names[1:]] == list(ours)
    assert getattr(fluxsmith, ours.__name__) is ours


def test_every_choice_of_the_contract_is_there() -> None:
    fields = trainer_pb2.TrainConfig.DESCRIPTOR.fields
    assert {kind.__name__ for kind in CHOICES} == {field.enum_type.name for field in fields if field.enum_type}


@pytest.mark.parametrize("text", ["LION", "lion", " Lion"])
def test_plain_text_in_any_case_stands_for_a_choice(text: str) -> None:
    message = write_config(TrainConfig(optimizer=text))  # type: ignore[arg-type]
    assert message.optimizer == trainer_pb2.OPTIMIZER_LION


def test_wrong_choice_is_told_with_the_right_ones_nearest_first() -> None:
    with pytest.raises(InvalidRequest, match=r"config.optimizer: 'prodgy' is none of prodigy, adamw, .* mean prodigy"):
        write_config(TrainConfig(optimizer="prodgy"))  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match=r"'cubic_styles' is none of cubic_style, cubic_content, uniform,"):
        write_config(TrainConfig(sigma_sampling="cubic_styles"))  # type: ignore[arg-type]


def test_refusal_tells_ranges_beside_what_cannot_travel(client: fluxsmith.Client, recorder: Recorder) -> None:
    wrong = {"rank": 0, "alpha": -1, "steps": 3, "epochs": 3, "optimizer": "foo", "preview_prompts": ["a"] * 17}
    with pytest.raises(InvalidRequest) as caught:
        client.train("d", **wrong)  # type: ignore[arg-type]
    fields = {violation.field.removeprefix("config.") for violation in caught.value.violations}
    assert fields == set(wrong) - {"steps"}
    assert not recorder.requests


def test_learning_rate_of_prodigy_has_its_own_range() -> None:
    with pytest.raises(InvalidRequest) as caught:
        write_config(TrainConfig(optimizer="prodigy", learning_rate=2.0, steps=3, epochs=3))  # type: ignore[arg-type]
    assert {violation.field for violation in caught.value.violations} == {"config.epochs"}


def test_mapping_of_any_kind_travels() -> None:
    assert write_config(TrainConfig(rank_pattern=MappingProxyType({"x": 3}))).rank_pattern == {"x": 3}


def test_choice_of_a_newer_service_is_left_out() -> None:
    assert read_config(trainer_pb2.TrainConfig(optimizer=99, rank=3)) == TrainConfig(rank=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 2**40},
        {"alpha": "much"},
        {"sigma_sampling": "WILD"},
        {"preview_prompts": "a cat"},
        {"preview_prompts": [1]},
        {"rank_pattern": {"x": "many"}},
        {"rank_pattern": "x=3"},
    ],
)
def test_value_that_cannot_travel_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        write_config(TrainConfig(**wrong, beta1="late"))  # type: ignore[arg-type]
    assert {violation.field for violation in caught.value.violations} == {
        "config.beta1",
        *(f"config.{n}" for n in wrong),
    }


def test_steps_and_epochs_exclude_each_other() -> None:
    with pytest.raises(InvalidRequest, match="steps and epochs exclude each other"):
        write_config(TrainConfig(steps=1, epochs=1))


def test_train_sends_every_keyword(client: fluxsmith.Client, recorder: Recorder) -> None:
    client.train("d", held_out="h", name="ink", **FULL)
    [request] = recorder.asked(trainer_pb2.CreateTrainingJobRequest)
    assert (request.dataset_id, request.held_out_dataset_id, request.display_name) == ("d", "h", "ink")
    assert read_config(request.config) == FULL_CONFIG


def test_validate_asks_for_nothing_but_what_is_wrong(client: fluxsmith.Client, recorder: Recorder) -> None:
    client.validate(FULL_CONFIG, held_out=True, start_while_encoding=True)
    [request] = recorder.validated()
    assert (request.dataset_id, request.held_out_to_come, request.start_while_encoding) == ("", True, True)
    assert read_config(request.config) == FULL_CONFIG
    assert not recorder.queued()


def test_validate_raises_what_the_trainer_says(client: fluxsmith.Client, recorder: Recorder) -> None:
    recorder.refusal = "rank is wrong"
    with pytest.raises(InvalidRequest, match="rank is wrong"):
        client.validate(TrainConfig())


def test_unknown_keyword_is_told_with_its_neighbours(client: fluxsmith.Client, recorder: Recorder) -> None:
    with pytest.raises(TypeError, match=r"'lerning_rate' \(did you mean learning_rate"):
        client.train("d", lerning_rate=1e-4)  # type: ignore[call-arg]
    assert not recorder.requests


def test_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        FULL_CONFIG.rank = 1  # type: ignore[misc]
