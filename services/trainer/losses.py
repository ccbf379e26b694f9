"""What is made of the error of the velocity: how its size, its noise level and its place in the picture count.

Legend: B batch, C latent channels (16), H/W latent height and width.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange, reduce
from torch import Tensor

from services.trainer.config import TrainConfig
from services.trainer.config.choices import HuberSchedule, LossFunction, LossWeighting

# Mean over 0 to 1 of exp(-2 (sigma - 1/2)^2), and its value at both ends.
_BELL_MEAN = math.sqrt(math.pi / 2) * math.erf(math.sqrt(1 / 2))
_BELL_END = math.exp(-1 / 2)


def loss_of_error(error_BCHW: Tensor, sigma_B: Tensor, mask_B1HW: Tensor | None, config: TrainConfig) -> Tensor:
    """Loss of each sample, (B,), given the error of its velocity and the noise level that the model was told."""
    loss_BCHW = loss_of_size(error_BCHW, huber_delta(config, sigma_B), config.loss_function)
    return level_weight(config.loss_weighting, sigma_B) * averaged(loss_BCHW, mask_B1HW, config.unmasked_weight)


def loss_of_size(error_BCHW: Tensor, delta_B: Tensor, function: LossFunction) -> Tensor:
    """Loss of each number by its own error; the same shape.

    HUBER is the square up to delta and `delta (2 |error| - delta)` beyond: value and slope go on without a step, and
    small errors cost what they cost with MSE. That is twice torch's `huber_loss`.
    """
    match function:
        case LossFunction.MSE:
            return error_BCHW.square()
        case LossFunction.MAE:
            return error_BCHW.abs()
        case LossFunction.HUBER:
            size_BCHW, delta_B111 = error_BCHW.abs(), rearrange(delta_B, "b -> b 1 1 1")
            beyond_BCHW = delta_B111 * (2 * size_BCHW - delta_B111)
            return torch.where(size_BCHW <= delta_B111, size_BCHW.square(), beyond_BCHW)


def huber_delta(config: TrainConfig, sigma_B: Tensor) -> Tensor:
    """The error, (B,), at which HUBER turns from square to linear. Both schedules go from 1 at the image to the end."""
    end = config.huber_delta
    match config.huber_schedule:
        case HuberSchedule.CONSTANT:
            return torch.full_like(sigma_B, end)
        case HuberSchedule.EXPONENTIAL:
            return end**sigma_B
        case HuberSchedule.SNR:
            return end + (1 - end) * (1 - sigma_B).square()


def level_weight(weighting: LossWeighting, sigma_B: Tensor) -> Tensor:
    """How much each sample counts, (B,), by its noise level in (0, 1].

    Source: Esser et al. 2024 (arXiv 2403.03206) for COSMAP; diffusers' scripts for Stable Diffusion 3 for SIGMA_SQRT.
    """
    match weighting:
        case LossWeighting.NONE:
            return torch.ones_like(sigma_B)
        case LossWeighting.BELL:
            bell_B = torch.exp(-2 * (sigma_B - 0.5).square())
            return (bell_B - _BELL_END) / (_BELL_MEAN - _BELL_END)
        case LossWeighting.SIGMA_SQRT:
            return sigma_B**-2.0
        case LossWeighting.COSMAP:
            return 2 / (math.pi * (1 - 2 * sigma_B + 2 * sigma_B.square()))


def averaged(loss_BCHW: Tensor, mask_B1HW: Tensor | None, unmasked_weight: float) -> Tensor:
    """Mean over each sample, (B,), in which what the mask leaves out counts `unmasked_weight`.

    It is a mean over what counts: a small subject is learnt as fast as a large one. Where nothing counts it is 0.
    """
    if mask_B1HW is None:
        return reduce(loss_BCHW, "b c h w -> b", "mean")
    weight_B1HW = mask_B1HW + (1 - mask_B1HW) * unmasked_weight
    loss_B1HW = reduce(loss_BCHW, "b c h w -> b 1 h w", "mean")
    sum_B, weight_B = (reduce(part, "b 1 h w -> b", "sum") for part in (loss_B1HW * weight_B1HW, weight_B1HW))
    return sum_B / torch.where(weight_B > 0, weight_B, 1)
