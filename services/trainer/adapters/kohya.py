"""LoRA files in kohya's form, which ComfyUI and Forge read: names of the reference model, q, k and v fused.

The reference model has one matrix for q, k and v (in single-stream blocks for the feed-forward's first layer too), so
their LoRAs become one: A stacked, B block-diagonal. Scales go into B, and alpha is the rank: a reader that leaves alpha
out is right as well.

Source: `networks/lora_flux.py` of kohya's sd-scripts for the form; black-forest-labs/flux for names and order.

Legend: O outputs of a layer, I inputs, R rank.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from services.trainer.adapters.files import AdapterSnapshot, file_bytes, header, with_scale
from services.trainer.config import TrainConfig
from services.trainer.config.choices import AdapterType

PREFIX = "lora_unet_"
_DOUBLE = {
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn_proj": ("attn.to_out.0",),
    "img_mlp_0": ("ff.net.0.proj",),
    "img_mlp_2": ("ff.net.2",),
    "img_mod_lin": ("norm1.linear",),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn_proj": ("attn.to_add_out",),
    "txt_mlp_0": ("ff_context.net.0.proj",),
    "txt_mlp_2": ("ff_context.net.2",),
    "txt_mod_lin": ("norm1_context.linear",),
}
_SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation_lin": ("norm.linear",),
}
_OUTSIDE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in_in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in_out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in_in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in_out_layer": "time_text_embed.text_embedder.linear_2",
    "final_layer_adaLN_modulation_1": "norm_out.linear",
    "final_layer_linear": "proj_out",
}
_BLOCK = re.compile(r"(single_)?transformer_blocks\.(\d+)\.(.+)")
_KOHYA_BLOCK = re.compile(r"(double|single)_blocks_(\d+)_(.+)")
# Outputs of the fused layers' parts: the feed-forward is four times as wide.
_SHARES = {"qkv": (1, 1, 1), "linear1": (1, 1, 1, 4)}
# diffusers has scale before shift there, the reference model shift before scale.
_SWAPPED = "final_layer_adaLN_modulation_1"


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
    for layer in sorted({_layer_of(name) for name in factors}):
        fused = _fused([factors.get(name) for name in modules_of(layer)], _shares(layer))
        up_OR = halves_swapped(fused.b_OR) if layer == _SWAPPED else fused.b_OR
        tensors[f"{PREFIX}{layer}.lora_down.weight"] = fused.a_RI
        tensors[f"{PREFIX}{layer}.lora_up.weight"] = up_OR
        tensors[f"{PREFIX}{layer}.alpha"] = torch.tensor(float(len(fused.a_RI)))
    return tensors


def from_kohya(tensors: Mapping[str, Tensor]) -> dict[str, LoraFactors]:
    """Each module's factors in float32 by diffusers' names. Raises `ValueError` for keys or shapes of another form."""
    factors: dict[str, LoraFactors] = {}
    for layer in sorted({_kohya_layer(key) for key in tensors}):
        names = (f"{PREFIX}{layer}.{part}" for part in ("lora_down.weight", "lora_up.weight"))
        down_RI, up_OR = (_matrix(tensors, name) for name in names)
        rank = len(down_RI)
        if up_OR.shape[1] != rank:
            raise ValueError(f"{layer} has rank {rank} on one side and {up_OR.shape[1]} on the other")
        alpha = tensors.get(f"{PREFIX}{layer}.alpha")
        scale = 1.0 if alpha is None else float(alpha) / rank
        up_OR = scale * (halves_swapped(up_OR) if layer == _SWAPPED else up_OR)
        parts = _split(LoraFactors(a_RI=down_RI, b_OR=up_OR), _shares(layer), layer)
        factors |= {name: part for name, part in zip(modules_of(layer), parts, strict=True) if part}
    return factors


def modules_of(layer: str) -> tuple[str, ...]:
    """Diffusers' names of the modules that a layer of the reference model is made of, in its order."""
    if inside := _KOHYA_BLOCK.fullmatch(layer):
        kind, number, part = inside.groups()
        members = (_DOUBLE if kind == "double" else _SINGLE).get(part, ())
        prefix = "" if kind == "double" else "single_"
        if members:
            return tuple(f"{prefix}transformer_blocks.{number}.{member}" for member in members)
    if layer in _OUTSIDE:
        return (_OUTSIDE[layer],)
    raise ValueError(f"FLUX has no layer {layer!r}")


def _layer_of(name: str) -> str:
    if inside := _BLOCK.fullmatch(name):
        single, number, module = inside.groups()
        table, kind = (_SINGLE, "single") if single else (_DOUBLE, "double")
        part = next(part for part, members in table.items() if module in members)
        return f"{kind}_blocks_{number}_{part}"
    return next(layer for layer, module in _OUTSIDE.items() if module == name)


def _kohya_layer(key: str) -> str:
    layer, _, part = key.removeprefix(PREFIX).partition(".")
    if not key.startswith(PREFIX) or part not in ("lora_down.weight", "lora_up.weight", "alpha"):
        raise ValueError(f"{key!r} is not of a FLUX transformer's LoRA")
    return layer


def _shares(layer: str) -> tuple[int, ...]:
    return next((shares for end, shares in _SHARES.items() if layer.endswith(end)), (1,))


def _fused(parts: Sequence[LoraFactors | None], shares: Sequence[int]) -> LoraFactors:
    """One product for parts that share their input, each with its own rows; those without a LoRA get zeros."""
    width = next(len(part.b_OR) // share for part, share in zip(parts, shares, strict=True) if part)
    # A block without columns leaves zeros in its rows.
    blocks = [part.b_OR if part else torch.zeros(share * width, 0) for part, share in zip(parts, shares, strict=True)]
    return LoraFactors(a_RI=torch.cat([part.a_RI for part in parts if part]), b_OR=torch.block_diag(*blocks))


def _split(fused: LoraFactors, shares: Sequence[int], layer: str) -> list[LoraFactors | None]:
    """The parts of a fused product; None for one whose rows are zero.

    Where every part has columns of its own they are told apart, as `_fused` put them together. Otherwise each part
    takes the columns that its rows use: all of them in files of trainers that train the fused layer itself.
    """
    if len(fused.b_OR) % sum(shares):
        raise ValueError(f"{layer} has {len(fused.b_OR)} outputs, which do not split {shares}")
    width = len(fused.b_OR) // sum(shares)
    rows = torch.split(fused.b_OR, [share * width for share in shares])
    used = [part_OR.any(dim=0) for part_OR in rows]
    if own := _own_columns(used):
        used = own
    return [
        LoraFactors(a_RI=fused.a_RI[columns], b_OR=part_OR[:, columns]) if columns.any() else None
        for part_OR, columns in zip(rows, used, strict=True)
    ]


def _own_columns(used: Sequence[Tensor]) -> list[Tensor]:
    """Equal runs of columns, one a part, where no part uses another's; else nothing."""
    rank, count = len(used[0]), len(used)
    if rank % count:
        return []
    own = [torch.arange(rank) // (rank // count) == number for number in range(count)]
    apart = all(not (columns & ~mine).any() for columns, mine in zip(used, own, strict=True))
    return own if apart else []


def _matrix(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in tensors or tensors[name].ndim != 2 or not tensors[name].numel():
        raise ValueError(f"{name} is not there, or is not a matrix")
    return tensors[name].float()


def halves_swapped(up_OR: Tensor) -> Tensor:
    """The second half of the rows, then the first."""
    first, second = up_OR.chunk(2)
    return torch.cat([second, first])
