"""The loss on held-out samples at fixed noise levels and noise: what tells learning from memorising."""

from __future__ import annotations

import torch
from diffusers import FluxTransformer2DModel

from services.trainer.cached_dataset import CachedDataset
from services.trainer.flow_matching import loss_per_sample


@torch.no_grad()
def held_out_loss(transformer: FluxTransformer2DModel, dataset: CachedDataset, batch_size: int) -> float:
    """Mean loss over samples and noise levels; the same weights give the same number in every run."""
    device = next(transformer.parameters()).device
    losses_B = [loss_per_sample(transformer, batch.to(device)) for batch in dataset.held_out_batches(batch_size)]
    return float(torch.cat(losses_B).mean())
