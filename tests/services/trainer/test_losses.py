"""What is made of the error: each weighting, loss and mask against its formula."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.training_utils import compute_loss_weighting_for_sd3
from torch import Tensor
from torch.nn import functional

from services.trainer.config import TrainConfig
from services.trainer.config.choices import HuberSchedule, LossFunction, LossWeighting
from services.trainer.losses import averaged, huber_delta, level_weight, loss_of_error, loss_of_size
from tests.services.trainer.conftest import draw, left_half

LEVELS = torch.linspace(0.05, 1, 20, dtype=torch.float64)
MIDDLES = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000


def error_of(*values: float) -> Tensor:
    """One sample of one channel with these errors in a row."""
    return torch.tensor(values, dtype=torch.float64).reshape(1, 1, 1, -1)


@pytest.mark.parametrize("weighting", [LossWeighting.NONE, LossWeighting.SIGMA_SQRT, LossWeighting.COSMAP])
def test_weighting_is_that_of_diffusers(weighting: LossWeighting) -> None:
    theirs = compute_loss_weighting_for_sd3(weighting.lower(), LEVELS)
    torch.testing.assert_close(level_weight(weighting, LEVELS), theirs, check_dtype=False)


def test_bell_is_nothing_at_both_ends_and_one_on_average() -> None:
    ends = level_weight(LossWeighting.BELL, torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert ends.tolist() == pytest.approx([0, 0], abs=1e-12)
    assert float(level_weight(LossWeighting.BELL, MIDDLES).mean()) == pytest.approx(1, abs=1e-6)


def test_bell_has_the_shape_of_its_formula() -> None:
    bell = torch.exp(-2 * (LEVELS - 0.5) ** 2) - math.exp(-0.5)
    weight = level_weight(LossWeighting.BELL, LEVELS)
    torch.testing.assert_close(weight / weight.max(), bell / bell.max())


def test_cosmap_weight_of_even_levels_is_one_on_average() -> None:
    """It is the density of COSMAP sampling: both ways to the same objective."""
    assert float(level_weight(LossWeighting.COSMAP, MIDDLES).mean()) == pytest.approx(1, abs=1e-6)


def test_huber_is_the_square_under_delta_and_a_line_beyond() -> None:
    loss = loss_of_size(error_of(-0.2, 0.1, 0.5, 1.0, -2.0), torch.tensor([0.5]), LossFunction.HUBER)
    assert loss.flatten().tolist() == pytest.approx([0.04, 0.01, 0.25, 0.75, 1.75])


def test_huber_goes_on_without_a_step_in_value_or_slope() -> None:
    at = torch.tensor([0.3 - 1e-9, 0.3 + 1e-9], dtype=torch.float64, requires_grad=True)
    under, over = loss_of_size(at.reshape(1, 1, 1, 2), torch.tensor([0.3]).double(), LossFunction.HUBER).flatten()
    slope_under, slope_over = torch.autograd.grad(under + over, at)[0]
    torch.testing.assert_close(under, over, rtol=0, atol=1e-8)
    torch.testing.assert_close(slope_under, slope_over, rtol=0, atol=1e-8)


def test_huber_is_twice_that_of_torch() -> None:
    error = draw("error", 2, 16, 4, 4)
    ours = loss_of_size(error, torch.tensor([0.7, 0.7]), LossFunction.HUBER)
    theirs = functional.huber_loss(error, torch.zeros_like(error), reduction="none", delta=0.7)
    torch.testing.assert_close(ours, 2 * theirs)


@pytest.mark.parametrize(("function", "expected"), [(LossFunction.MSE, [4.0, 0.25]), (LossFunction.MAE, [2.0, 0.5])])
def test_square_and_absolute_value(function: LossFunction, expected: list[float]) -> None:
    assert loss_of_size(error_of(-2, 0.5), torch.tensor([0.1]), function).flatten().tolist() == expected


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (HuberSchedule.CONSTANT, [0.2, 0.2, 0.2]),
        (HuberSchedule.EXPONENTIAL, [1.0, math.sqrt(0.2), 0.2]),
        (HuberSchedule.SNR, [1.0, 0.2 + 0.8 * 0.25, 0.2]),
    ],
)
def test_huber_schedules_run_from_the_image_to_noise(schedule: HuberSchedule, expected: list[float]) -> None:
    config = TrainConfig(huber_delta=0.2, huber_schedule=schedule)
    assert huber_delta(config, torch.tensor([0.0, 0.5, 1.0])).tolist() == pytest.approx(expected)


def test_each_sample_has_the_delta_of_its_own_level() -> None:
    config = TrainConfig(loss_function=LossFunction.HUBER, huber_delta=0.25, huber_schedule=HuberSchedule.EXPONENTIAL)
    loss_B = loss_of_error(torch.ones(2, 16, 4, 4), torch.tensor([0.5, 1.0]), None, config)
    assert loss_B.tolist() == pytest.approx([0.5 * (2 - 0.5), 0.25 * (2 - 0.25)])


def test_each_sample_has_the_weight_of_its_own_level() -> None:
    config = TrainConfig(loss_weighting=LossWeighting.SIGMA_SQRT)
    loss_B = loss_of_error(torch.full((2, 16, 4, 4), 3.0), torch.tensor([0.5, 1.0]), None, config)
    assert loss_B.tolist() == [36, 9]


def test_mask_leaves_what_it_covers_out() -> None:
    loss = torch.cat([torch.full((1, 16, 4, 2), 5.0), torch.full((1, 16, 4, 2), 100.0)], dim=-1)
    assert averaged(loss, left_half(4, 4)[None], 0.0).tolist() == [5]


def test_small_mask_does_not_shrink_the_gradient() -> None:
    error = torch.ones(2, 16, 8, 8, requires_grad=True)
    mask = torch.zeros(2, 1, 8, 8)
    mask[0, 0, 0, 0], mask[1] = 1, 1
    loss_B = loss_of_error(error, torch.tensor([0.5, 0.5]), mask, TrainConfig())
    gradient = torch.autograd.grad(loss_B.sum(), error)[0]
    assert loss_B.tolist() == [1, 1]
    assert gradient[0].sum() == pytest.approx(float(gradient[1].sum()))


def test_what_is_masked_out_counts_its_weight() -> None:
    loss = torch.tensor([2.0, 10.0]).expand(1, 16, 1, 2)
    mask = torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 2)
    assert averaged(loss, mask, 0.25).tolist() == pytest.approx([(2 + 0.25 * 10) / 1.25])
    assert averaged(loss, mask, 1.0).tolist() == [6]


def test_mask_may_be_half_open() -> None:
    loss = torch.tensor([2.0, 10.0]).expand(1, 16, 1, 2)
    mask = torch.tensor([1.0, 0.5]).reshape(1, 1, 1, 2)
    assert averaged(loss, mask, 0.0).tolist() == pytest.approx([(2 + 5) / 1.5])


def test_mask_of_nothing_gives_no_loss_and_no_gradient() -> None:
    error = draw("error", 1, 16, 4, 4).requires_grad_()
    loss_B = loss_of_error(error, torch.tensor([0.5]), torch.zeros(1, 1, 4, 4), TrainConfig())
    loss_B.sum().backward()
    assert loss_B.tolist() == [0]
    assert error.grad is not None
    assert not error.grad.any()


def test_open_mask_changes_nothing() -> None:
    loss = draw("loss", 3, 16, 4, 6).square()
    torch.testing.assert_close(averaged(loss, torch.ones(3, 1, 4, 6), 0.3), averaged(loss, None, 0.3))
