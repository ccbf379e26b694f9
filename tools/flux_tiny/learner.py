"""One optimizer step, and what must survive a killed run: weights, their average, optimizers, random state."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tools.flux_tiny.optimizer import new_optimizers

Module = TypeVar("Module", bound=nn.Module)

AVERAGE_EVERY = 5  # steps; each costs a pass over all weights
SNAPSHOT_EVERY_S = 120.0
REPORT_EVERY = 50


class Learner(Generic[Module]):
    """Muon and AdamW on a schedule, with an exponential average of the weights in `averaged`.

    The rate rises over the first 2 % of the steps and falls linearly to 0 over the last `fall` of them. A snapshot is
    taken every two minutes; a learner made on the same file goes on from it.
    """

    def __init__(
        self,
        module: Module,
        snapshot: Path,
        *,
        steps: int,
        lr: float,
        fall: float = 0.7,
        weight_decay: float = 0.0,
        average: float = 0.998,
        first: tuple[str, ...] = (),
    ) -> None:
        self.module, self.snapshot, self.steps = module, snapshot, steps
        self._average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(average**AVERAGE_EVERY))
        self.trained = [weight for weight in module.parameters() if weight.requires_grad]
        self.optimizers = new_optimizers(module, lr=lr, weight_decay=weight_decay, first=first)
        self._rates = [(group, lr) for optimizer in self.optimizers for group in optimizer.param_groups]
        self._fall = fall
        self.step = 0
        self._mean_loss = 0.0
        if snapshot.exists():
            self._load()
        self._first, self._started, self._saved = self.step, time.monotonic(), time.monotonic()

    @property
    def averaged(self) -> Module:
        """The module with the averaged weights: the one to keep."""
        module: Module = self._average.module  # type: ignore[assignment]
        return module

    @property
    def done(self) -> float:
        """Share of the steps that are behind."""
        return self.step / self.steps

    def update(self, loss: Tensor) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        share = min(1.0, (self.step + 1) / (0.02 * self.steps), (1 - self.done) / self._fall)
        for group, lr in self._rates:
            group["lr"] = lr * share
        for optimizer in self.optimizers:
            optimizer.step()
        self.module.zero_grad()
        self.step += 1
        if self.step % AVERAGE_EVERY == 0:
            self._average.update_parameters(self.module)
        self._report(loss.item())

    def _report(self, loss: float) -> None:
        self._mean_loss += (loss - self._mean_loss) * max(0.01, 1 / max(1, self.step - self._first))
        now = time.monotonic()
        if self.step % REPORT_EVERY == 0:
            pace_s = (now - self._started) / (self.step - self._first)
            print(f"step {self.step} loss {self._mean_loss:.4f} {pace_s:.3f} s/step", flush=True)
        if now - self._saved > SNAPSHOT_EVERY_S or self.step == self.steps:
            self._save()
            self._saved = now

    def _save(self) -> None:
        """Write a snapshot; a run killed while it writes keeps the one before."""
        parts = {
            "step": self.step,
            "module": self.module.state_dict(),
            "average": self._average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "random": (torch.get_rng_state(), random.getstate()),
        }
        unfinished = self.snapshot.with_suffix(".part")
        torch.save(parts, unfinished)
        unfinished.replace(self.snapshot)

    def _load(self) -> None:
        parts = torch.load(self.snapshot, weights_only=True)
        self.step = parts["step"]
        self.module.load_state_dict(parts["module"])
        self._average.load_state_dict(parts["average"])
        for optimizer, state in zip(self.optimizers, parts["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        torch.set_rng_state(parts["random"][0])
        random.setstate(parts["random"][1])
