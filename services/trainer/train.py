"""The training loop. What it minimises is in `flow_matching.py`; what it sees is in `cached_dataset.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from services.trainer.config import TrainConfig
from services.trainer.flow_matching import Batch, loss_per_sample

WEIGHT_DECAY = 1e-4


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one step measured. `loss` and `gradient_norm` are scalars still on the device: reading one waits for it."""

    number: int
    loss: Tensor
    gradient_norm: Tensor
    learning_rate: float


def train(
    transformer: FluxTransformer2DModel, batches: Iterable[Batch], config: TrainConfig, on_step: Callable[[Step], None]
) -> None:
    """Fit the trainable parameters of `transformer` to `batches`, one optimizer step each.

    Loading, saving, reporting and cancelling belong to the caller, through `on_step`; what it raises ends the loop.
    """
    parameters = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    device = parameters[0].device
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: min(1.0, (done + 1) / (config.warmup_steps + 1))
    )
    for number, batch in enumerate(batches, start=1):
        loss = loss_per_sample(transformer, batch.to(device)).mean()
        loss.backward()
        gradient_norm = nn.utils.clip_grad_norm_(parameters, config.max_gradient_norm)
        learning_rate = float(schedule.get_last_lr()[0])
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        on_step(Step(number=number, loss=loss.detach(), gradient_norm=gradient_norm, learning_rate=learning_rate))
