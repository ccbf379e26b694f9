"""One optimizer step and what must survive a killed run: weights, their average, optimizer, schedule, random state."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tools.flux_tiny.model import TinyFlux

AVERAGE_EVERY = 5  # steps; each costs a pass over all weights


class Learner:
    """AdamW on a one-cycle schedule, with an exponential average of the weights in `average`; `decay` is per step."""

    def __init__(self, model: TinyFlux, *, steps: int, peak_lr: float, decay: float) -> None:
        self.model = model
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay**AVERAGE_EVERY))
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=peak_lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, peak_lr, total_steps=steps, pct_start=0.05, cycle_momentum=False
        )
        self.step = 0

    @property
    def averaged(self) -> TinyFlux:
        """The model with the averaged weights: the one to keep."""
        return cast("TinyFlux", self.average.module)

    def update(self, loss: Tensor) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        self.step += 1
        if self.step % AVERAGE_EVERY == 0:
            self.average.update_parameters(self.model)

    def save(self, path: Path) -> None:
        """Write a snapshot; a run killed while it writes keeps the one before."""
        parts = {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": torch.get_rng_state(),
        }
        unfinished = path.with_suffix(".part")
        torch.save(parts, unfinished)
        unfinished.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a snapshot."""
        parts = torch.load(path, weights_only=True)
        self.step = parts["step"]
        self.model.load_state_dict(parts["model"])
        self.average.load_state_dict(parts["average"])
        self.optimizer.load_state_dict(parts["optimizer"])
        self.schedule.load_state_dict(parts["schedule"])
        torch.set_rng_state(parts["random"])
