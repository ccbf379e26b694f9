"""The configuration of a job: every mistake in it is named, and all at once."""

from __future__ import annotations

import time
from typing import Any

import pytest
from pydantic import ValidationError

from services.common.errors import InvalidInput
from services.trainer.config import TrainConfig, parse_config
from services.trainer.config.choices import Optimizer


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
        ("learning_rate", 10.5),
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
        ("timesteps", 9),
        ("sigma_std", 0.0),
        ("sigma_shift", 0.0),
        ("sigma_mode_scale", 1.76),
        ("sigma_beta_a", 0.0),
        ("sigma_min", 1.0),
        ("sigma_max", 0.0),
        ("loss_weighting", "SNR"),
        ("huber_delta", 0.0),
        ("unmasked_weight", 1.5),
        ("guidance_scale", -1.0),
        ("gradient_accumulation_steps", 0),
        ("ema_decay", 1.0),
        ("max_skipped_steps", -1),
        ("optimizer", "SGD"),
        ("weight_decay", -1e-4),
        ("beta1", 1.0),
        ("schedule_cycles", 0),
        ("final_learning_rate_ratio", 1.5),
        ("lora_plus_ratio", 0.5),
        ("adapter_type", "IA3"),
        ("adapter_dropout", 1.0),
        ("target_regex", "x" * 1001),
        ("lokr_factor", 1),
        ("file_dtype", "FP8"),
        ("held_out_share", 0.6),
        ("early_stopping_patience", -1),
        ("preview_prompts", ("p",) * 17),
        ("preview_sampling_steps", 0),
        ("preview_height_px", 65),
        ("preview_width_px", 2064),
        ("sigma_sampling", "NORMAL"),
        ("targets", "EVERYTHING"),
        ("no_such_field", 1),
    ],
)
def test_value_out_of_range_is_named_with_its_field(field: str, value: object) -> None:
    ((name, description),) = violations_of({field: value}).items()
    assert name == f"config.{field}"
    assert repr(value)[:100] in description


def test_all_violations_are_reported_at_once() -> None:
    wrong = {"rank": 0, "alpha": -1.0, "learning_rate": float("nan"), "caption_dropout": 2.0}
    assert set(violations_of(wrong)) == {f"config.{field}" for field in wrong}


@pytest.mark.parametrize(
    ("fields", "named", "said"),
    [
        ({"steps": 10, "epochs": 2}, "steps", "steps or epochs"),
        ({"sigma_min": 0.5, "sigma_max": 0.4}, "sigma_max", "not above 0.5"),
        ({"sigma_max": 0.005, "timesteps": 100}, "sigma_max", "not above 0.01"),
        ({"guidance": "SAMPLED", "guidance_scale": 4.0}, "guidance_scale_max", "below guidance_scale"),
        ({"learning_rate": 0.2}, "learning_rate", "at most 0.1, except with optimizer PRODIGY"),
        ({"lora_plus_ratio": 2.0, "optimizer": "PRODIGY"}, "lora_plus_ratio", "PRODIGY"),
        ({"lora_plus_ratio": 2.0, "adapter_type": "LOKR"}, "lora_plus_ratio", "B matrices"),
        (
            {"optimizer": "ADAMW_SCHEDULE_FREE", "learning_rate_schedule": "COSINE"},
            "learning_rate_schedule",
            "CONSTANT",
        ),
        ({"optimizer": "ADAMW_SCHEDULE_FREE", "ema_decay": 0.9}, "ema_decay", "averages by itself"),
        ({"optimizer": "ADAMW_SCHEDULE_FREE", "beta1": 0.0}, "beta1", "over 0"),
        ({"optimizer": "ADAFACTOR", "beta1": 0.9}, "beta1", "leave it unset"),
        ({"adapter_type": "LOHA", "use_rslora": True}, "use_rslora", "LORA and DORA only"),
        ({"adapter_type": "LOKR", "adapter_dropout": 0.1}, "adapter_dropout", "LORA and DORA only"),
        ({"adapter_type": "LOKR", "init_weights": "GAUSSIAN"}, "init_weights", "LORA and DORA only"),
        ({"adapter_type": "DORA", "init_weights": "PISSA"}, "init_weights", "LORA only"),
        ({"init_weights": "PISSA", "warm_start_uri": "s3://b/k"}, "init_weights", "exclude each other"),
        ({"lokr_factor": 4}, "lokr_factor", "LOKR only"),
        ({"target_regex": "("}, "target_regex", "not a regular expression"),
        ({"rank_pattern": {"[": 4}}, "rank_pattern", "not a regular expression"),
    ],
)
def test_values_that_do_not_go_together_are_refused(fields: dict[str, Any], named: str, said: str) -> None:
    ((field, description),) = violations_of(fields).items()
    assert field == f"config.{named}"
    assert said in description
    with pytest.raises(ValidationError, match=named):
        TrainConfig(**fields)


def test_expressions_that_take_long_to_compile_are_refused_in_time() -> None:
    begin = time.thread_time()
    ((field, description),) = violations_of(
        {"rank_pattern": {".{0,999}" * 24 + letter: 4 for letter in "abcdef"}}
    ).items()
    assert (field, "pattern too large" in description) == ("config.rank_pattern", True)
    assert time.thread_time() - begin < 2


def test_conflicts_are_told_together_with_values_out_of_range() -> None:
    wrong = {"rank": 0, "rank_pattern": {"a": 0}, "steps": 1, "epochs": 1, "beta1": 0.5, "optimizer": "ADAFACTOR"}
    fields = {"config.rank", "config.rank_pattern.a", "config.steps", "config.beta1"}
    assert set(violations_of(wrong)) == fields


def test_a_field_out_of_range_is_not_blamed_for_a_conflict_too() -> None:
    assert set(violations_of({"steps": 0, "epochs": 1})) == {"config.steps"}


def test_rank_pattern_is_checked_entry_by_entry() -> None:
    assert set(violations_of({"rank_pattern": {"a": 1, "b": 513}})) == {"config.rank_pattern.b"}


def test_prodigy_finds_its_own_learning_rate_unless_told() -> None:
    assert parse_config({"optimizer": "PRODIGY"}).learning_rate == 1.0
    assert TrainConfig(optimizer=Optimizer.PRODIGY).learning_rate == 1.0
    assert parse_config({"optimizer": "PRODIGY", "learning_rate": 0.5}).learning_rate == 0.5
    assert TrainConfig().learning_rate == 1e-4


def test_defaults_are_those_of_the_source_document() -> None:
    config = TrainConfig()
    assert (config.rank, config.alpha, config.learning_rate, config.batch_size) == (16, 16.0, 1e-4, 1)
    assert config.total_steps(batches_per_epoch=12) == 12  # one epoch
    assert (config.gradient_checkpointing, config.timesteps) == (True, 1000)


@pytest.mark.parametrize(
    "fields", [{"rank": 1}, {"rank": 512}, {"seed": 2**32 - 1}, {"learning_rate": 0.1}, {"caption_dropout": 1.0}]
)
def test_ends_of_a_range_belong_to_it(fields: dict[str, Any]) -> None:
    assert parse_config(fields).model_dump(include=set(fields)) == fields


@pytest.mark.parametrize(
    ("fields", "steps"),
    [
        ({}, 12),
        ({"epochs": 3}, 36),
        ({"steps": 5}, 5),
        ({"steps": 100}, 100),
        ({"gradient_accumulation_steps": 4}, 3),
        ({"gradient_accumulation_steps": 5}, 3),  # the last one has two batches
        ({"gradient_accumulation_steps": 5, "epochs": 3}, 8),
        ({"gradient_accumulation_steps": 5, "steps": 7}, 7),
    ],
)
def test_length_is_steps_or_epochs_or_one_epoch(fields: dict[str, Any], steps: int) -> None:
    assert parse_config(fields).total_steps(batches_per_epoch=12) == steps


@pytest.mark.parametrize(("total", "interval"), [(1000, 250), (99, 25), (30, 8), (4, 1), (3, 1)])
def test_previews_are_made_four_times_a_run(total: int, interval: int) -> None:
    assert TrainConfig().preview_interval(total) == interval
    assert TrainConfig(preview_interval_steps=7).preview_interval(total) == 7


@pytest.mark.parametrize(("total", "interval"), [(1000, 100), (99, 10), (10, 1), (3, 1)])
def test_held_out_loss_is_measured_ten_times_a_run(total: int, interval: int) -> None:
    assert TrainConfig().validation_interval(total) == interval
    assert TrainConfig(validation_interval_steps=7).validation_interval(total) == 7


def test_configuration_never_changes() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        TrainConfig().rank = 4  # type: ignore[misc]


@pytest.mark.parametrize("text", ["by Mr\u00a0Smith", "\u6771\u3000\u4eac", "\U0001f468\u200d\U0001f469", "a\n\tb", ""])
def test_prompts_are_any_text_that_people_write(text: str) -> None:
    assert parse_config({"preview_prompts": (text,)}).preview_prompts == (text,)


def test_control_characters_are_named_by_their_number_and_place() -> None:
    wrong = {"preview_prompts": ("a\x07",), "target_regex": "a\0", "rank_pattern": {"a\x1b": 4}}
    told = violations_of(wrong)
    assert told["config.preview_prompts.0"] == "is 'a\\x07': has the control character U+0007 at place 2"
    assert told["config.target_regex"] == "is 'a\\x00': has the control character U+0000 at place 2"
    assert any("U+001B at place 2" in text for text in told.values())
