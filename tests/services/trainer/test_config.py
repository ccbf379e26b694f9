"""The configuration of a job: every mistake in it is named, and all at once."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from services.common.errors import InvalidInput
from services.trainer.config import TrainConfig, parse_config


def violations_of(fields: dict[str, Any]) -> dict[str, str]:
    """Field and description of every violation."""
    with pytest.raises(InvalidInput) as caught:
        parse_config(fields)
    assert caught.value.reason == "CONFIG_INVALID"
    return {violation.field: violation.description for violation in caught.value.violations}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rank", 0),
        ("rank", 513),
        ("rank", -1),
        ("alpha", 0.0),
        ("alpha", float("inf")),
        ("learning_rate", float("nan")),
        ("learning_rate", 0.0),
        ("learning_rate", 0.2),
        ("batch_size", 0),
        ("batch_size", 65),
        ("steps", 0),
        ("steps", 100_001),
        ("epochs", 0),
        ("seed", -1),
        ("seed", 2**32),
        ("warmup_steps", -1),
        ("max_gradient_norm", 0.0),
        ("max_gradient_norm", float("nan")),
        ("caption_dropout", 1.01),
        ("caption_dropout", -0.1),
        ("validation_interval_steps", 0),
        ("sigma_sampling", "NORMAL"),
        ("targets", "EVERYTHING"),
        ("no_such_field", 1),
    ],
)
def test_value_out_of_range_is_named_with_its_field(field: str, value: object) -> None:
    ((name, description),) = violations_of({field: value}).items()
    assert name == f"config.{field}"
    assert repr(value) in description


def test_all_violations_are_reported_at_once() -> None:
    wrong = {"rank": 0, "alpha": -1.0, "learning_rate": float("nan"), "caption_dropout": 2.0}
    assert set(violations_of(wrong)) == {f"config.{field}" for field in wrong}


def test_steps_and_epochs_together_are_refused() -> None:
    ((field, description),) = violations_of({"steps": 10, "epochs": 2}).items()
    assert field == "config.steps"
    assert "steps or epochs" in description


@pytest.mark.parametrize(
    "fields", [{"rank": 1}, {"rank": 512}, {"seed": 2**32 - 1}, {"learning_rate": 0.1}, {"caption_dropout": 1.0}]
)
def test_ends_of_a_range_belong_to_it(fields: dict[str, Any]) -> None:
    assert parse_config(fields).model_dump(include=set(fields)) == fields


@pytest.mark.parametrize(("fields", "steps"), [({}, 12), ({"epochs": 3}, 36), ({"steps": 5}, 5), ({"steps": 100}, 100)])
def test_length_is_steps_or_epochs_or_one_epoch(fields: dict[str, Any], steps: int) -> None:
    assert parse_config(fields).total_steps(steps_per_epoch=12) == steps


@pytest.mark.parametrize(("total", "interval"), [(1000, 100), (99, 9), (10, 1), (3, 1)])
def test_held_out_loss_is_measured_ten_times_a_run(total: int, interval: int) -> None:
    assert TrainConfig().validation_interval(total) == interval
    assert TrainConfig(validation_interval_steps=7).validation_interval(total) == 7


def test_configuration_never_changes() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        TrainConfig().rank = 4  # type: ignore[misc]
