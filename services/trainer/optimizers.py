"""The optimizers that a job may choose. What each is for and costs: `docs/optimization.md`.

Groups and the parameters in them have the order of the mapping given, so a state can be loaded into another run's
optimizer. The learning rate of a step is the group's `initial_lr` times the schedule's factor: `set_learning_rate`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from bitsandbytes.optim import AdamW8bit
from lion_pytorch import Lion
from prodigyopt import Prodigy
from schedulefree import AdamWScheduleFree
from torch import Tensor, nn
from transformers.optimization import Adafactor

from services.trainer.config import TrainConfig
from services.trainer.config.choices import Optimizer

B_MATRIX = ".lora_B.weight"
T = TypeVar("T")


def build_optimizer(parameters: Mapping[str, nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer that `config` asks for, over parameters by their names (`adapter.adapter_parameters`).

    A schedule-free one is ready to train.
    """
    groups = _groups(parameters, config)
    match config.optimizer:
        case Optimizer.ADAMW:
            return torch.optim.AdamW(groups, betas=_betas(config, 0.9, 0.999))
        case Optimizer.ADAMW_8BIT:
            optimizer: torch.optim.Optimizer = AdamW8bit(groups, betas=_betas(config, 0.9, 0.999))
        case Optimizer.PRODIGY:
            # Both switches are what its authors advise for diffusion models.
            optimizer = Prodigy(
                groups, betas=_betas(config, 0.9, 0.999), use_bias_correction=True, safeguard_warmup=True
            )
        case Optimizer.ADAFACTOR:
            # torch's own scales each rate by the size of the weights: B, which begins at 0, would get a thousandth.
            optimizer = Adafactor(groups, lr=config.learning_rate, scale_parameter=False, relative_step=False)
        case Optimizer.LION:
            optimizer = Lion(groups, betas=_betas(config, 0.9, 0.99))
        case Optimizer.ADAMW_SCHEDULE_FREE:
            free = AdamWScheduleFree(groups, betas=_betas(config, 0.9, 0.999))
            free.train()
            optimizer = free
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set every group's learning rate for the step to come; return the rate of what is not a B matrix.

    Prodigy's is what it found so far, d, times the rate set. Schedule-free AdamW is warmed up here too: its own
    `warmup_steps` does the same, but would not count skipped steps.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    first = optimizer.param_groups[0]
    return float(first["lr"] * first.get("d", 1.0))


def state_apart(state: T) -> T:
    """A copy of a state, however nested, that shares no memory with it, all tensors on the CPU."""
    copied: Any = state
    if isinstance(state, Tensor):
        copied = state.detach().to("cpu", copy=True)
    elif isinstance(state, dict):
        copied = {key: state_apart(value) for key, value in state.items()}
    elif isinstance(state, (list, tuple)):
        copied = type(state)(state_apart(value) for value in state)
    return copied  # type: ignore[no-any-return]


def _groups(parameters: Mapping[str, nn.Parameter], config: TrainConfig) -> list[dict[str, Any]]:
    """One group, or with LoRA+ (Hayou et al. 2024, arXiv 2402.12354) the B matrices in a second."""
    if config.lora_plus_ratio == 1:
        return [_group(list(parameters.values()), config, config.learning_rate)]
    others = [parameter for name, parameter in parameters.items() if not name.endswith(B_MATRIX)]
    b_matrices = [parameter for name, parameter in parameters.items() if name.endswith(B_MATRIX)]
    return [
        _group(others, config, config.learning_rate),
        _group(b_matrices, config, config.learning_rate * config.lora_plus_ratio),
    ]


def _group(parameters: list[nn.Parameter], config: TrainConfig, learning_rate: float) -> dict[str, Any]:
    rate = {"lr": learning_rate, "initial_lr": learning_rate}
    return {"params": parameters, "weight_decay": config.weight_decay, **rate}


def _betas(config: TrainConfig, beta1: float, beta2: float) -> tuple[float, float]:
    return (
        beta1 if config.beta1 is None else config.beta1,
        beta2 if config.beta2 is None else config.beta2,
    )
