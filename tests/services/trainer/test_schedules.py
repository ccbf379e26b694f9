"""The learning rate over a run: its ends, and diffusers' shapes between them."""

from __future__ import annotations

import pytest
import torch
from diffusers import optimization
from torch.optim.lr_scheduler import LambdaLR

from services.trainer.config import TrainConfig
from services.trainer.config.choices import LearningRateSchedule
from services.trainer.schedules import learning_rate_factor

STEPS, WARMUP = 40, 7
FALLING = [schedule for schedule in LearningRateSchedule if schedule is not LearningRateSchedule.CONSTANT]


def factors(**fields: object) -> list[float]:
    """The factor of every step of a run, and of the one after the last."""
    config = TrainConfig.model_validate({"steps": STEPS, **fields})
    steps = config.total_steps(1)
    return [learning_rate_factor(config, step, steps) for step in range(steps + 1)]


def of_diffusers(name: str, warmup_steps: int, **options: float) -> list[float]:
    """The factors of diffusers' schedule, over the steps of the run and the one after."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule: LambdaLR = getattr(optimization, f"get_{name}_schedule_with_warmup")(
        optimizer, num_warmup_steps=warmup_steps, num_training_steps=STEPS, **options
    )
    return [float(schedule.lr_lambdas[0](step)) for step in range(STEPS + 1)]


@pytest.mark.parametrize(
    ("fields", "name", "options"),
    [
        ({"learning_rate_schedule": "LINEAR"}, "linear", {}),
        ({"learning_rate_schedule": "LINEAR", "final_learning_rate_ratio": 0.25}, "linear", {"f_min": 0.25}),
        ({"learning_rate_schedule": "COSINE"}, "cosine", {}),
        (
            {"learning_rate_schedule": "COSINE_WITH_RESTARTS", "schedule_cycles": 3},
            "cosine_with_hard_restarts",
            {"num_cycles": 3},
        ),
        (
            {"learning_rate_schedule": "POLYNOMIAL", "schedule_power": 2.5, "final_learning_rate_ratio": 0.1},
            "polynomial_decay",
            {"power": 2.5, "lr_end": 0.1},
        ),
    ],
)
def test_fall_is_that_of_diffusers(fields: dict[str, object], name: str, options: dict[str, float]) -> None:
    ours = factors(warmup_steps=WARMUP, **fields)
    assert ours[WARMUP:] == pytest.approx(of_diffusers(name, WARMUP, **options)[WARMUP:])


def test_warm_up_is_that_of_diffusers_without_its_step_at_rate_0() -> None:
    ours = factors(warmup_steps=WARMUP, learning_rate_schedule="COSINE")
    assert ours[: WARMUP + 1] == pytest.approx(of_diffusers("cosine", WARMUP + 1)[1 : WARMUP + 2])


def test_constant_stays() -> None:
    assert factors() == [1.0] * (STEPS + 1)


@pytest.mark.parametrize("schedule", FALLING)
@pytest.mark.parametrize("ratio", [0.0, 0.2])
def test_fall_begins_at_1_and_ends_at_its_ratio_after_the_last_step(schedule: str, ratio: float) -> None:
    whole = factors(learning_rate_schedule=schedule, final_learning_rate_ratio=ratio)
    assert whole[0] == 1
    assert whole[-1] == pytest.approx(ratio)
    assert all(ratio < factor <= 1 for factor in whole[:-1])


def test_cosine_with_restarts_begins_anew_each_cycle() -> None:
    whole = factors(learning_rate_schedule="COSINE_WITH_RESTARTS", schedule_cycles=2)
    assert whole[20] == 1
    assert whole[19] < 0.01


def test_polynomial_of_power_1_is_linear() -> None:
    assert factors(learning_rate_schedule="POLYNOMIAL") == factors(learning_rate_schedule="LINEAR")


@pytest.mark.parametrize("schedule", LearningRateSchedule)
@pytest.mark.parametrize("warmup_steps", [5, 6, 100])
def test_warm_up_longer_than_the_run_rises_to_its_end(schedule: str, warmup_steps: int) -> None:
    *run, after = factors(steps=5, warmup_steps=warmup_steps, learning_rate_schedule=schedule)
    assert run == pytest.approx([(step + 1) / (warmup_steps + 1) for step in range(5)])
    assert 0 <= after <= 1
