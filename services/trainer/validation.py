"""The loss on held-out samples at fixed noise levels and noise: what tells learning from memorising.

Beside it the loss of predicting no velocity on the same samples, levels and noise, which says how much a loss is worth.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from services.trainer.config import TrainConfig
from services.trainer.config.choices import LossFunction, LossWeighting
from services.trainer.data.cached_dataset import CachedDataset
from services.trainer.flow_matching import loss_per_sample, velocity_target
from services.trainer.losses import loss_of_error


@torch.no_grad()
def held_out_loss(
    transformer: FluxTransformer2DModel, dataset: CachedDataset, config: TrainConfig, before_batch: Callable[[], None]
) -> float:
    """Mean squared error over samples and noise levels; the same weights give the same number in every run.

    Runs compare by it whatever they minimise: only their masks and what they tell of guidance count here too.
    `before_batch` may raise to end it early.
    """
    plain = _plain(config)
    device = next(transformer.parameters()).device
    losses: list[Tensor] = []
    for batch in dataset.held_out_batches(plain):
        before_batch()
        losses.append(loss_per_sample(transformer, batch.to(device), plain))
    return float(torch.cat(losses).mean())


def zero_loss(dataset: CachedDataset, config: TrainConfig, before_batch: Callable[[], None]) -> float:
    """What `held_out_loss` would be if the transformer predicted a velocity of 0: the yardstick for it.

    The mean square of noise - clean over the same samples, noise levels, noise and masks; no weights have a part in it.
    """
    plain = _plain(config)
    losses: list[Tensor] = []
    for batch in dataset.held_out_batches(plain):
        before_batch()
        error_BCHW = -velocity_target(batch.clean_BCHW, batch.noise_BCHW)
        losses.append(loss_of_error(error_BCHW, batch.sigma_B, batch.mask_B1HW, plain))
    return float(torch.cat(losses).mean())


def _plain(config: TrainConfig) -> TrainConfig:
    """The configuration with what a run minimizes put aside."""
    return config.model_copy(update={"loss_function": LossFunction.MSE, "loss_weighting": LossWeighting.NONE})
