"""The loss on held-out samples at fixed noise levels and noise: what tells learning from memorising."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from services.trainer.config import TrainConfig
from services.trainer.config.choices import LossFunction, LossWeighting
from services.trainer.data.cached_dataset import CachedDataset
from services.trainer.flow_matching import loss_per_sample


@torch.no_grad()
def held_out_loss(
    transformer: FluxTransformer2DModel, dataset: CachedDataset, config: TrainConfig, before_batch: Callable[[], None]
) -> float:
    """Mean squared error over samples and noise levels; the same weights give the same number in every run.

    Runs compare by it whatever they minimise: only their masks and what they tell of guidance count here too.
    `before_batch` may raise to end it early.
    """
    plain = config.model_copy(update={"loss_function": LossFunction.MSE, "loss_weighting": LossWeighting.NONE})
    device = next(transformer.parameters()).device
    losses: list[Tensor] = []
    for batch in dataset.held_out_batches(plain):
        before_batch()
        losses.append(loss_per_sample(transformer, batch.to(device), plain))
    return float(torch.cat(losses).mean())
