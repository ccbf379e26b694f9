"""What tensors would hold on a GPU during a step, counted on the meta device: real modules, no numbers, no GPU.

Autocast does not act on meta tensors, and their attention and norms are not the fused ones of a GPU; so these four
functions are exchanged for ones that make and keep the same tensors.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from services.trainer.adapters.adapter import attached
from services.trainer.config import TrainConfig
from services.trainer.flow_matching import predict_velocity
from services.trainer.transformer import prepared

LATENT = 8


def step_bytes(model: dict[str, Any], config: TrainConfig, *, side_px: int, text_tokens: int) -> int:
    """The most that a step's forward and backward pass hold beside weights, adapter and optimizer, in bf16."""
    with torch.device("meta"):
        transformer = prepared(FluxTransformer2DModel(**model).bfloat16())
        side = side_px // LATENT
        latents = torch.empty(config.batch_size, model["in_channels"] // 4, side, side).bfloat16()
        t5 = torch.empty(config.batch_size, text_tokens, model["joint_attention_dim"]).bfloat16()
        clip = torch.empty(config.batch_size, model["pooled_projection_dim"]).bfloat16()
        sigma = torch.empty(config.batch_size).bfloat16()
        adapter = attached(transformer, config)
        adapter.__enter__()
    if config.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    with _of_a_gpu(), Held(transformer) as held, torch.autograd.set_multithreading_enabled(False):
        velocity = predict_velocity(transformer, latents, sigma, t5, clip)
        (velocity.float() - latents.float()).square().mean().backward()
    adapter.__exit__(None, None, None)
    return int(held.peak_bytes)


class Held(TorchDispatchMode):
    """Adds up the storages that are alive, but for those of a model's own parameters."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak_bytes: int = 0
        self._now_bytes = 0
        self._sizes = {parameter.untyped_storage()._cdata: 0 for parameter in model.parameters()}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._sizes:
            return
        self._sizes[storage._cdata] = storage.nbytes()
        self._now_bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self._now_bytes)
        weakref.finalize(storage, self._freed, storage._cdata)

    def _freed(self, key: int) -> None:
        self._now_bytes -= self._sizes.pop(key)


@contextmanager
def _of_a_gpu() -> Iterator[None]:
    """Linear layers, norms and attention as under CUDA's autocast to bf16 (ATen/autocast_mode.h)."""
    linear, layer_norm = functional.linear, functional.layer_norm
    casts: dict[Tensor, Tensor] = {}

    def low(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter) or tensor.dtype is torch.bfloat16:
            return tensor.bfloat16()
        return casts.setdefault(tensor, tensor.bfloat16())  # once, as autocast does

    def low_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear(low(x), low(weight), bias)

    def float_norm(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return layer_norm(x.float(), *args, **kwargs)

    def rms_norm(x: Tensor, _shape: Any, weight: Tensor, _eps: float) -> Tensor:
        return _apply(_RmsNorm, x.float(), weight)

    def attention(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
        return _apply(_Attention, low(query), low(key), low(value))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "linear", low_linear)
        patch.setattr(functional, "layer_norm", float_norm)
        patch.setattr(functional, "rms_norm", rms_norm)
        patch.setattr(functional, "scaled_dot_product_attention", attention)
        yield


def _apply(function: type[torch.autograd.Function], *args: Tensor) -> Tensor:
    apply: Callable[..., Tensor] = function.apply
    return apply(*args)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, x.new_empty(x.shape[:-1]), weight)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        return torch.empty_like(ctx.saved_tensors[0]), None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, result, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return result

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])
