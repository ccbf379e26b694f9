"""Train transformer, T5 and CLIP together from nothing, by flow matching on latents that were encoded before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from tools.flux_tiny.batches import USUAL, Batch, Frame, Latents, draw_kind, empty_ids
from tools.flux_tiny.learner import Learner
from tools.flux_tiny.model import TinyFlux, new_model
from tools.flux_tiny.text import Tokenizers

# These stay with AdamW: tables, and maps that read or write something else than hidden states.
FIRST = ("embed", "relative_attention_bias", "shared", "norm_out", "transformer.proj_out")


def train_transformer(
    latents: dict[Frame, Latents], tokenizers: Tokenizers, snapshot: Path, *, steps: int, lr: float = 3e-3
) -> TinyFlux:
    """Fit the velocity of the straight path from picture to noise. The guidance given is ignored in this phase."""
    learner = Learner(new_model(tokenizers), snapshot, steps=steps, lr=lr, weight_decay=0.01, first=FIRST)
    compiled = torch.compile(learner.module, dynamic=False)  # pays for the most frequent shape only
    empty = empty_ids(tokenizers)
    while learner.done < 1:
        kind = draw_kind()
        batch = latents[kind.frame].draw(kind, empty)
        loss = flow_loss(compiled if kind is USUAL else learner.module, batch)
        learner.update(loss * (kind.batch / USUAL.batch) ** 0.5)
    return learner.averaged.eval()


def flow_loss(model: Callable[..., Tensor], batch: Batch) -> Tensor:
    """Mean squared error of the velocity."""
    guidance_B = torch.ones_like(batch.sigma_B)
    velocity_BCHW = model(batch.noisy_BCHW, batch.sigma_B, batch.clip_BS, batch.t5_BS, guidance_B)
    return torch.nn.functional.mse_loss(velocity_BCHW, batch.velocity_BCHW)
