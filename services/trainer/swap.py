"""What makes room on the base for another job: one job's adapter and optimizer, out to main memory and back.

Between steps the two differ in nothing but where they lie: a job that was out goes on to the bit as if it never was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from services.trainer.adapters.adapter import AttachedAdapter
from services.trainer.train import Training

MAIN_MEMORY = torch.device("cpu")


class Swap:
    """One job's way out and back; a `turns.Swapped`. Until `carry` is called there is nothing to swap."""

    def __init__(self, transformer: FluxTransformer2DModel, *, resting: torch.device = MAIN_MEMORY) -> None:
        """`resting` is where tensors lie while the job is out."""
        self._transformer = transformer
        self._resting = resting
        self._adapter: AttachedAdapter | None = None
        self._training: Training | None = None
        self._moved: list[tuple[Tensor, torch.device]] = []
        self._checkpointing = False

    def carry(self, adapter: AttachedAdapter, training: Training | None = None) -> None:
        """From now on, swap these; the adapter is on the base. Again, with the run, once there is one."""
        self._adapter, self._training = adapter, training

    def out(self) -> None:
        """Take the adapter off the base, and move all tensors of the job to where they rest.

        The base comes first: when memory runs out, it is free for others nevertheless.
        """
        if not self._adapter:
            return
        self._checkpointing = self._transformer.is_gradient_checkpointing
        self._adapter.take_off()
        for tensor in self._tensors(self._adapter):
            if tensor.device != self._resting:
                home = tensor.device
                tensor.data = tensor.data.to(self._resting)
                self._moved.append((tensor, home))

    def back(self) -> None:
        """Undo `out`. When memory runs out, the adapter stays off the base, and `back` may be tried again."""
        if not self._adapter:
            return
        while self._moved:
            tensor, home = self._moved[-1]
            tensor.data = tensor.data.to(home)
            self._moved.pop()
        self._adapter.put_on()  # each of its modules in the mode that it had, which nothing below may touch
        if self._checkpointing:
            self._transformer.enable_gradient_checkpointing()
        else:
            self._transformer.disable_gradient_checkpointing()

    def end(self) -> None:
        """Forget the job, so that what it has in memory is free."""
        self._adapter = self._training = None
        self._moved = []

    def _tensors(self, adapter: AttachedAdapter) -> Iterator[Tensor]:
        """Each tensor once, by identity: whoever else refers to one finds it moved, bitsandbytes' shared maps too."""
        tensors = adapter.own_tensors()
        tensors += [tensor.grad for tensor in tensors if tensor.grad is not None]
        if self._training:
            optimizer = self._training.optimizer
            tensors += _found((*optimizer.state.values(), *optimizer.param_groups))
            if self._training.average:
                tensors += self._training.average.state_dict()["weights"].values()
        return iter({id(tensor): tensor for tensor in tensors}.values())


def _found(entries: Iterable[dict[str, Any]]) -> list[Tensor]:
    return [value for entry in entries for value in entry.values() if isinstance(value, Tensor)]
