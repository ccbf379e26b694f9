"""Muon for weight matrices, AdamW for the rest: a small run gets further in as many steps than with AdamW alone.

Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon): momentum whose matrix is made orthogonal by a
Newton-Schulz iteration. torch.optim.Muon takes matrices only; here a convolution's kernel counts as (out, in * k * k).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),) * 5


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal. `lr` is the root mean square of an update's elements over 0.2, as AdamW's would be."""

    def __init__(self, weights: list[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(weights, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    shapes.setdefault(weight.shape, []).append(weight)
            for weights in shapes.values():
                self._step_alike(weights, group)

    def _step_alike(self, weights: list[Tensor], group: dict[str, float]) -> None:
        """Step weights of one shape, stacked so that the small products are fewer and larger."""
        updates: list[Tensor] = []
        for weight in weights:
            state = self.state[weight]
            if not state:
                state["momentum"] = torch.zeros_like(weight)
            state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
            ahead = torch.lerp(weight.grad, state["momentum"], group["momentum"])  # type: ignore[arg-type]
            updates.append(ahead.flatten(1))
        stacked = orthogonal(torch.stack(updates))
        scale = 0.2 * max(stacked.shape[-2:]) ** 0.5 * group["lr"]
        for weight, update in zip(weights, stacked, strict=True):
            weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update.view_as(weight), alpha=scale)


def orthogonal(x_NRC: Tensor) -> Tensor:
    """Bring all singular values near to 1."""
    x = x_NRC.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for a, b, c in NEWTON_SCHULZ:
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(x_NRC.dtype)


def new_optimizers(
    module: nn.Module, *, lr: float, weight_decay: float, first: tuple[str, ...]
) -> list[torch.optim.Optimizer]:
    """Muon for linear maps and convolutions; AdamW for the rest, and for names with a part in `first`."""
    matrices: list[Tensor] = []
    rest: list[Tensor] = []
    for name, weight in module.named_parameters():
        if weight.requires_grad:
            hidden = weight.ndim > 1 and not any(part in name for part in first)
            (matrices if hidden else rest).append(weight)
    return [
        Muon(matrices, lr=lr, weight_decay=weight_decay),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True),
    ]
