"""How other programs apply a LoRA file to FLUX's weights: their rules, in code of our own.

None of them reads peft's configuration in the header. Versions, and what was run in the programs themselves, are in
docs/adapters.md.

Legend: O outputs of a layer, I inputs, R rank.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PARTS = re.compile(r"(.+?)\.(lora_[AB]\.weight|lora_(?:up|down)\.weight|alpha|dora_scale|lokr_w\w+|hada_w\w+)")
FORGE_TAKES = 12  # keys that it has no place for
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
SHIFT_AND_SCALE = "norm_out.linear"
"""Its two halves come the other way round in the reference model, whose weights ComfyUI has."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The base's weights (O, I) with the file applied, and the keys that the program has no place for."""

    weights: dict[str, Tensor]
    left_over: set[str]


@dataclass(frozen=True, kw_only=True)
class Place:
    """The modules whose weights, one below the other, a name in a file stands for."""

    modules: tuple[str, ...]
    in_reference_order: bool


class Refused(Exception):
    """The program does not take the file."""


def comfyui(tensors: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> Reading:
    """ComfyUI 0.3.64: diffusers' names, the LyCORIS library's and kohya's; alpha is that of the file or the rank.

    DoRA's lengths are divided by those of the rows of the base's weight, without what the adapter adds.
    """
    places, weights, left_over = comfyui_places(base), dict(base), set(tensors)
    for name, parts in grouped(tensors).items():
        if not (place := places.get(name)):
            continue
        left_over -= {f"{name}.{part}" for part in parts}
        whole_OI = torch.cat([base[module] for module in place.modules])
        turned = SHIFT_AND_SCALE in place.modules
        whole_OI = swapped(whole_OI) if turned else whole_OI
        added_OI = change(parts, whole_OI)
        added_OI = swapped(added_OI) if turned and not place.in_reference_order else added_OI
        result_OI = whole_OI + added_OI
        if (lengths := parts.get("dora_scale")) is not None:
            if lengths.shape[0] != len(whole_OI):
                raise Refused("another axis")
            result_OI = result_OI * (lengths.float() / whole_OI.norm(dim=1, keepdim=True))
        result_OI = swapped(result_OI) if turned else result_OI
        rows = torch.split(result_OI, [len(base[module]) for module in place.modules])
        weights |= dict(zip(place.modules, rows, strict=True))
    return Reading(weights=weights, left_over=left_over)


def forge(tensors: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> Reading:
    """Forge: ComfyUI's rules, but a file with many keys that it does not know is refused."""
    reading = comfyui(tensors, base)
    if len(reading.left_over) > FORGE_TAKES:
        raise Refused("LoRA version mismatch")
    return reading


def header_blind(tensors: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> Reading:
    """diffusers up to 0.32, nunchaku, Draw Things, ai-toolkit, SimpleTuner: B A of diffusers' names, alpha the rank."""
    known = {key: tensor for key, tensor in tensors.items() if re.fullmatch(r"transformer\..+\.lora_[AB]\.weight", key)}
    reading = comfyui(known, base)
    return Reading(weights=reading.weights, left_over=set(tensors) - set(known))


def sd_scripts(tensors: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> Reading:
    """kohya's `flux_merge_lora.py` on the reference model: kohya's names alone; others are passed over."""
    known = {key: tensor for key, tensor in tensors.items() if key.startswith("lora_unet_")}
    reading = comfyui(known, base)
    return Reading(weights=reading.weights, left_over=set(tensors) - set(known))


def invokeai_takes(tensors: Mapping[str, Tensor]) -> bool:
    """InvokeAI 6.14 at import: whether it sees that the file is a LoRA of FLUX."""
    if any(key.startswith("lora_unet_") for key in tensors):
        inside = r"lora_unet_(?:double|single)_blocks_\d+_.+|lora_unet_final_layer_linear.*"
        return all(re.fullmatch(inside, key) for key in tensors)
    seen = ("transformer_blocks.0.attn.add_q_proj", "single_transformer_blocks.0.attn.to_q")
    return all(f"transformer.{name}.lora_{side}.weight" in tensors for name in seen for side in "AB")


def sdnext_takes(tensors: Mapping[str, Tensor], modules: Sequence[str]) -> bool:
    """SD.Next's own loader: whether every name is that of a layer; of LoRA only kohya's names are."""
    inside = {f"lycoris_{name.replace('.', '_')}" for name in modules}
    inside |= {f"lora_unet_{name}" for name, place in reference_layers(modules) if place[0] not in OUTSIDE.values()}
    return all(key.partition(".")[0] in inside for key in tensors)


def change(parts: Mapping[str, Tensor], weight_OI: Tensor) -> Tensor:
    """What the tensors of one name add (O, I)."""
    found = {part: tensor.float() for part, tensor in parts.items()}
    if any(part.startswith("lokr") for part in found):
        sides = [found.get(f"lokr_{w}", _product(found, f"lokr_{w}_a", f"lokr_{w}_b")) for w in ("w1", "w2")]
        ranks = [len(found[part]) for part in ("lokr_w1_b", "lokr_w2_b") if part in found]
        scale = float(found["alpha"]) / ranks[-1] if "alpha" in found and ranks else 1.0
        return (scale * torch.kron(*sides)).reshape(weight_OI.shape)
    if "hada_w1_a" in found:
        product = _product(found, "hada_w1_a", "hada_w1_b") * _product(found, "hada_w2_a", "hada_w2_b")
        rank = len(found["hada_w1_b"])
    else:
        up, down = (
            ("lora_B.weight", "lora_A.weight") if "lora_B.weight" in found else ("lora_up.weight", "lora_down.weight")
        )
        product, rank = _product(found, up, down), len(found[down])
    return product * (float(found["alpha"]) / rank if "alpha" in found else 1.0)


def comfyui_places(modules: Mapping[str, Tensor]) -> dict[str, Place]:
    """Every name that ComfyUI knows, and what it stands for."""
    places = {
        f"lora_unet_{layer}": Place(modules=of, in_reference_order=True) for layer, of in reference_layers(modules)
    }
    for name in modules:
        place = Place(modules=(name,), in_reference_order=False)
        places |= {f"transformer.{name}": place, f"lycoris_{name.replace('.', '_')}": place}
    return places


def reference_layers(modules: Mapping[str, Tensor] | Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Layers of the reference model by kohya's names, each with the modules that it is made of."""
    for kind, prefix, table in (("double", "", DOUBLE), ("single", "single_", SINGLE)):
        pattern = re.compile(rf"{prefix}transformer_blocks\.(\d+)\..+")
        for block in sorted({int(found[1]) for name in modules if (found := pattern.fullmatch(name))}):
            for layer, parts in table.items():
                of = tuple(f"{prefix}transformer_blocks.{block}.{part}" for part in parts)
                yield f"{kind}_blocks_{block}_{layer}", of
    yield from ((layer, (name,)) for layer, name in OUTSIDE.items())


def grouped(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors of each name, without those whose kind no program knows."""
    names: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        if found := PARTS.fullmatch(key):
            names[found[1]][found[2]] = tensor
    return names


def swapped(rows: Tensor) -> Tensor:
    """The second half of the rows, then the first."""
    return torch.cat([*reversed(rows.chunk(2))])


def _product(parts: Mapping[str, Tensor], left: str, right: str) -> Tensor:
    return parts[left] @ parts[right] if left in parts else torch.empty(0)
