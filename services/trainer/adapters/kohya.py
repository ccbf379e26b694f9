"""LoRA files in kohya's form, which ComfyUI and Forge read: names of the reference model, q, k and v fused.

The reference model has one matrix for q, k and v (in single-stream blocks for the feed-forward's first layer too), so
their LoRAs become one: A stacked, B block-diagonal. Scales go into B, and alpha is the rank: a reader that leaves alpha
out is right as well.

Source: `networks/lora_flux.py` of kohya's sd-scripts for the form; black-forest-labs/flux for names and order.

Legend: O outputs of a layer, I inputs, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from services.trainer.adapters.files import AdapterSnapshot, file_bytes, header, with_scale
from services.trainer.adapters.flux_layers import SWAPPED, layer_of, modules_of, shares
from services.trainer.config import TrainConfig
from services.trainer.config.choices import AdapterType

PREFIX = "lora_unet_"


@dataclass(frozen=True, kw_only=True)
class LoraFactors:
    """What a layer's LoRA adds to its weight: b_OR @ a_RI, the scale included."""

    a_RI: Tensor
    b_OR: Tensor


def kohya_file(adapter: AdapterSnapshot, config: TrainConfig, provenance: Mapping[str, str]) -> bytes | None:
    """The file, the same bytes for the same adapter; None for an adapter that is no plain LoRA.

    Keys are `lora_unet_<layer>.lora_down.weight`, `.lora_up.weight` and `.alpha`. Raises `NonFiniteAdapter` for a
    number that the file's precision cannot hold.
    """
    if adapter.adapter_type is not AdapterType.LORA:
        return None
    tensors = with_scale(adapter, config)
    factors = {
        name: LoraFactors(a_RI=tensors[f"{name}.lora_A.weight"], b_OR=tensors[f"{name}.lora_B.weight"])
        for name in adapter.ranks
    }
    return file_bytes(to_kohya(factors), config, header(adapter, config) | dict(provenance))


def to_kohya(factors: Mapping[str, LoraFactors]) -> dict[str, Tensor]:
    """Tensors in kohya's form, given each module's factors by diffusers' names."""
    tensors: dict[str, Tensor] = {}
    for layer in sorted({layer_of(name) for name in factors}):
        fused = _fused([factors.get(name) for name in modules_of(layer)], shares(layer))
        up_OR = halves_swapped(fused.b_OR) if layer == SWAPPED else fused.b_OR
        tensors[f"{PREFIX}{layer}.lora_down.weight"] = fused.a_RI
        tensors[f"{PREFIX}{layer}.lora_up.weight"] = up_OR
        tensors[f"{PREFIX}{layer}.alpha"] = torch.tensor(float(len(fused.a_RI)))
    return tensors


def _fused(parts: Sequence[LoraFactors | None], shares: Sequence[int]) -> LoraFactors:
    """One product for parts that share their input, each with its own rows; those without a LoRA get zeros."""
    width = next(len(part.b_OR) // share for part, share in zip(parts, shares, strict=True) if part)
    # A block without columns leaves zeros in its rows.
    blocks = [part.b_OR if part else torch.zeros(share * width, 0) for part, share in zip(parts, shares, strict=True)]
    return LoraFactors(a_RI=torch.cat([part.a_RI for part in parts if part]), b_OR=torch.block_diag(*blocks))


def halves_swapped(up_OR: Tensor) -> Tensor:
    """The second half of the rows, then the first."""
    first, second = up_OR.chunk(2)
    return torch.cat([second, first])
