"""The average of an adapter over its training, which is often better than where the last step left it.

The exponential moving average of the weights after each step, with Adam's correction of the bias: after n steps

    average_n = sum_i decay^(n - i) weights_i / sum_i decay^(n - i)        i = 1 .. n

so the initial weights, which are the identity, count nothing. Begun at them, an average with decay 0.999 would still
be 60 percent identity after 500 steps. A decay that is warmed up, as often seen, needs one constant more and has no
such formula.

Source of the correction: Kingma and Ba 2015 (arXiv 1412.6980), section 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypedDict

import torch
from schedulefree import AdamWScheduleFree
from torch import Tensor, nn


class AverageState(TypedDict):
    """All that an average is made of."""

    updates: int
    weights: dict[str, Tensor]


class Average:
    """Exponential moving average of parameters, in float32 on their device: 4 bytes for each."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        """Begin with no weights seen. `decay` is per update and lies in [0, 1)."""
        self._parameters = dict(parameters)
        self._decay = decay
        self._updates = 0
        self._weights = {name: parameter.detach().float().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters as they are now."""
        self._updates += 1
        share = (1 - self._decay) / (1 - self._decay**self._updates)
        for name, parameter in self._parameters.items():
            self._weights[name].lerp_(parameter.float(), share)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The average in the parameters' place; afterwards they are what they were, to the bit.

        Before the first update the average is what the parameters were when it was made.
        """
        with kept(self._parameters.values()):
            with torch.no_grad():
                for name, parameter in self._parameters.items():
                    parameter.copy_(self._weights[name])
            yield

    def state_dict(self) -> AverageState:
        """What `load_state_dict` goes on from, sharing memory with the average."""
        return {"updates": self._updates, "weights": self._weights}

    def misfit(self, state: AverageState) -> str:
        """Why `load_state_dict` would refuse a state; empty for one that fits."""
        theirs = state["weights"]
        if names := sorted(theirs.keys() ^ self._weights.keys()):
            return f"other weights, {names[0]} among them"
        wrong = [name for name, weights in self._weights.items() if weights.shape != theirs[name].shape]
        return f"another shape of {wrong[0]}" if wrong else ""

    def load_state_dict(self, state: AverageState) -> None:
        """Go on from a state; raises `KeyError` when it is of other parameters."""
        self._updates = state["updates"]
        for name, weights in self._weights.items():
            weights.copy_(state["weights"][name])


@contextmanager
def schedule_free_average(optimizer: AdamWScheduleFree, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """The average that schedule-free AdamW keeps, in the place of the weights that it trains.

    Afterwards they are what they were, to the bit; the optimizer's own way back rounds.
    """
    with kept(parameters):
        optimizer.eval()
        try:
            yield
        finally:
            optimizer.train()


@contextmanager
def kept(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Whatever happens to the parameters meanwhile, afterwards they are what they were, to the bit."""
    before = [(parameter, parameter.detach().clone()) for parameter in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, weights in before:
                parameter.copy_(weights)
