"""The linear layers of a FLUX transformer by diffusers' names and by those of the reference model: names alone.

The reference model has one matrix for q, k and v, in single-stream blocks for the feed-forward's first layer too.

Source: black-forest-labs/flux for names and order.
"""

from __future__ import annotations

import re

DOUBLE = {
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
SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation_lin": ("norm.linear",),
}
OUTSIDE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in_in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in_out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in_in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in_out_layer": "time_text_embed.text_embedder.linear_2",
    "final_layer_adaLN_modulation_1": "norm_out.linear",
    "final_layer_linear": "proj_out",
}
# Diffusers has scale before shift there, the reference model shift before scale.
SWAPPED = "final_layer_adaLN_modulation_1"
_BLOCK = re.compile(r"(single_)?transformer_blocks\.(\d+)\.(.+)")
_REFERENCE_BLOCK = re.compile(r"(double|single)_blocks_(\d+)_(.+)")
# Outputs of the fused layers' parts: the feed-forward is four times as wide.
_SHARES = {"qkv": (1, 1, 1), "linear1": (1, 1, 1, 4)}


def modules_of(layer: str) -> tuple[str, ...]:
    """Diffusers' names of the modules that a layer of the reference model is made of, in its order."""
    if inside := _REFERENCE_BLOCK.fullmatch(layer):
        kind, number, part = inside.groups()
        members = (DOUBLE if kind == "double" else SINGLE).get(part, ())
        prefix = "" if kind == "double" else "single_"
        if members:
            return tuple(f"{prefix}transformer_blocks.{number}.{member}" for member in members)
    if layer in OUTSIDE:
        return (OUTSIDE[layer],)
    raise ValueError(f"FLUX has no layer {layer!r}")


def layer_of(name: str) -> str:
    """The layer of the reference model that a module of diffusers is, or is a part of."""
    if inside := _BLOCK.fullmatch(name):
        single, number, module = inside.groups()
        table, kind = (SINGLE, "single") if single else (DOUBLE, "double")
        part = next(part for part, members in table.items() if module in members)
        return f"{kind}_blocks_{number}_{part}"
    return next(layer for layer, module in OUTSIDE.items() if module == name)


def shares(layer: str) -> tuple[int, ...]:
    """How a layer's outputs are divided among its modules."""
    return next((shares for end, shares in _SHARES.items() if layer.endswith(end)), (1,))
