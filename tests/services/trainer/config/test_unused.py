"""Settings without effect are told, and those with an effect are not."""

from __future__ import annotations

from typing import Any

import pytest

from services.trainer.config import TrainConfig
from services.trainer.config.unused import unused


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"sigma_shift": 2.0}, "sigma_shift has no effect: sigma_sampling is LOGIT_NORMAL"),
        ({"huber_delta": 0.5}, "loss_function is MSE, and it counts with HUBER"),
        ({"guidance_scale": 2.0}, "guidance is BYPASS, and it counts with FIXED or SAMPLED"),
        ({"schedule_power": 2.0, "learning_rate_schedule": "COSINE"}, "counts with POLYNOMIAL"),
        ({"final_learning_rate_ratio": 0.5}, "final_learning_rate_ratio has no effect"),
        ({"early_stopping_min_delta": 0.1}, "without early_stopping_patience"),
        ({"preview_interval_steps": 5}, "without preview_prompts"),
        ({"masked_loss": False, "unmasked_weight": 0.5}, "without masked_loss"),
        ({"warmup_steps": 100}, "100 steps, of which 100 warm up"),
    ],
    ids=str,
)
def test_setting_without_effect_is_told(fields: dict[str, Any], said: str) -> None:
    (sentence,) = unused(TrainConfig(**fields), total_steps=100)
    assert said in sentence


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"sigma_shift": 2.0, "sigma_mean": 0.5, "sigma_sampling": "STATIC_SHIFT"},
        {"huber_delta": 0.5, "loss_function": "HUBER"},
        {"guidance_scale": 2.0, "guidance": "FIXED"},
        {"final_learning_rate_ratio": 0.5, "learning_rate_schedule": "LINEAR"},
        {"early_stopping_min_delta": 0.1, "early_stopping_patience": 2},
        {"warmup_steps": 99},
    ],
    ids=str,
)
def test_setting_with_an_effect_is_not(fields: dict[str, Any]) -> None:
    assert list(unused(TrainConfig(**fields), total_steps=100)) == []
