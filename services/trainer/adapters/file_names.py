"""The names that programs give to the tensors of FLUX adapters, all read into one form: which layer, and what of it.

A name is a prefix, a layer and a part. Layers are named as diffusers does, as the reference model, or as XLabs and
DiffSynth do; with dots, or joined by underscores; q, k and v apart, or as the one matrix of the reference model.

Source: `docs/adapters.md` lists the programs; their own code for the names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from services.trainer.adapters.flux_layers import DOUBLE, OUTSIDE, SINGLE, SWAPPED

A, B, ALPHA, LENGTHS, DORA_SCALE, BIAS = "lora_A", "lora_B", "alpha", "lengths", "dora_scale", "bias"
LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
PARTS: Mapping[str, str] = {
    **dict.fromkeys(("lora_A.weight", "lora_A.default.weight", "lora_down.weight", "lora.down.weight"), A),
    **dict.fromkeys(("lora_B.weight", "lora_B.default.weight", "lora_up.weight", "lora.up.weight"), B),
    **dict.fromkeys(("lora_linear_layer.down.weight", "down.weight"), A),
    **dict.fromkeys(("lora_linear_layer.up.weight", "up.weight"), B),
    **dict.fromkeys(("lora_magnitude_vector", "lora_magnitude_vector.weight"), LENGTHS),
    **dict.fromkeys(("lora_magnitude_vector.default", "lora_magnitude_vector.default.weight", "magnitude"), LENGTHS),
    **dict.fromkeys(("lora_A.bias", "lora_B.bias", "lora_B.default.bias", "lora_up.bias", "lora_down.bias"), BIAS),
    **{name: name for name in (ALPHA, DORA_SCALE, *LOKR, *LOHA)},
}
_KEY = re.compile(rf"(.+?)\.({'|'.join(map(re.escape, PARTS))})")
_DOTTED_PREFIXES = (
    *("base_model.model.", "model.diffusion_model.", "diffusion_model."),
    *("lora_transformer.", "transformer."),
)
_JOINED_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_transformer_", "lycoris_")
_CLIP = ("lora_te1_", "lora_te_", "lora_te1.", "text_encoder.", "text_encoders.clip_l.", "clip_l.", "text_model.")
_T5 = ("lora_te2_", "lora_te3_", "lora_te2.", "text_encoder_2.", "text_encoders.t5xxl.", "t5xxl.", "t5.")
NOT_THE_TRANSFORMERS: Mapping[str, tuple[str, ...]] = {
    "CLIP's text encoder": (*_CLIP, *(f"base_model.model.{prefix}" for prefix in _CLIP)),
    "T5": (*_T5, *(f"base_model.model.{prefix}" for prefix in _T5)),
    "token embeddings": ("bundle_emb.", "bundle_emb_"),
}
_NUMBERED_BLOCK = re.compile(r"([a-z_]*blocks)_(0|[1-9][0-9]{0,3})_(.+)")


def _joined(name: str) -> str:
    return name.replace(".", "_")


def _single_parts(table: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """The parts of fused layers, numbered as OneTrainer does: `img_attn.qkv.0` is q."""
    return {
        f"{layer}_{number}": (member,)
        for layer, members in table.items()
        if len(members) > 1
        for number, member in enumerate(members)
    }


_OF_DIFFSYNTH = {
    "norm1_a_linear": "img_mod_lin",
    "norm1_b_linear": "txt_mod_lin",
    "attn_a_to_qkv": "img_attn_qkv",
    "attn_b_to_qkv": "txt_attn_qkv",
    "attn_a_to_out": "img_attn_proj",
    "attn_b_to_out": "txt_attn_proj",
    "ff_a_0": "img_mlp_0",
    "ff_a_2": "img_mlp_2",
    "ff_b_0": "txt_mlp_0",
    "ff_b_2": "txt_mlp_2",
}
_OF_XLABS = {
    "processor_qkv_lora1": "img_attn_qkv",
    "processor_proj_lora1": "img_attn_proj",
    "processor_qkv_lora2": "txt_attn_qkv",
    "processor_proj_lora2": "txt_attn_proj",
}
# By the name of the blocks: the prefix of diffusers' names, and the members by a layer's joined name.
_BLOCKS: Mapping[str, tuple[str, Mapping[str, tuple[str, ...]]]] = {
    "transformer_blocks": (
        "transformer_blocks",
        {_joined(member): (member,) for members in DOUBLE.values() for member in members},
    ),
    "single_transformer_blocks": (
        "single_transformer_blocks",
        {_joined(member): (member,) for members in SINGLE.values() for member in members},
    ),
    "double_blocks": (
        "transformer_blocks",
        DOUBLE | _single_parts(DOUBLE) | {name: DOUBLE[layer] for name, layer in _OF_XLABS.items()},
    ),
    "single_blocks": (
        "single_transformer_blocks",
        SINGLE
        | _single_parts(SINGLE)
        | {"processor_qkv_lora": SINGLE["linear1"][:3], "processor_proj_lora": SINGLE["linear2"]}
        | {"to_qkv_mlp": SINGLE["linear1"], "proj_out": SINGLE["linear2"], "norm_linear": SINGLE["modulation_lin"]},
    ),
    "blocks": ("transformer_blocks", {name: DOUBLE[layer] for name, layer in _OF_DIFFSYNTH.items()}),
}
_OUTSIDE = OUTSIDE | {_joined(module): module for module in OUTSIDE.values()} | {"img_in_proj": "x_embedder"}
_WIDE = "proj_mlp"


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer as a file has it: diffusers' modules whose outputs it has one after the other, mostly a single one.

    `title` is its name in the file without a prefix. With `swapped` its first half of outputs is diffusers' second.
    """

    title: str
    modules: tuple[str, ...]
    swapped: bool = False

    @property
    def shares(self) -> tuple[int, ...]:
        """How its outputs are divided among its modules: the feed-forward is four times as wide."""
        return tuple(4 if len(self.modules) > 1 and module.endswith(_WIDE) else 1 for module in self.modules)


class UnknownForm(ValueError):
    """A file that is of no form that is read. `remedy` says what to do where there is more to say than usual."""

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.remedy = remedy


@dataclass(frozen=True, kw_only=True)
class Names:
    """The keys of a file by layer and part, and how many are of what is no transformer."""

    layers: Mapping[Layer, Mapping[str, str]]
    left_out: Mapping[str, int]


def read_names(keys: Iterable[str]) -> Names:
    """Sort a file's keys. Raises `UnknownForm`, always of the same key."""
    keys = sorted(keys)
    left_out: dict[str, int] = {}
    layers: dict[Layer, dict[str, str]] = {}
    for key in keys:
        if other := _other_part(key):
            left_out[other] = left_out.get(other, 0) + 1
            continue
        split = _KEY.fullmatch(key)
        layer = split and _layer(split[1])
        if not split or not layer:
            raise _unknown(key, keys)
        parts, part = layers.setdefault(layer, {}), PARTS[split[2]]
        if part in parts:
            raise UnknownForm(f"it has {key!r} beside {parts[part]!r}, which are the same part of one layer")
        parts[part] = key
    _refuse_twice(layers)
    return Names(layers=layers, left_out=left_out)


def _other_part(key: str) -> str:
    """What a key belongs to that is not the transformer; empty for all else."""
    return next((name for name, prefixes in NOT_THE_TRANSFORMERS.items() if key.startswith(prefixes)), "")


def _layer(name: str) -> Layer | None:
    title = _without_prefix(name)
    joined = _joined(title)
    if joined in _OUTSIDE:
        return Layer(title=title, modules=(_OUTSIDE[joined],), swapped=joined == SWAPPED)
    if not (inside := _NUMBERED_BLOCK.fullmatch(joined)):
        return None
    blocks, number, rest = inside.groups()
    prefix, table = _BLOCKS.get(blocks, ("", {}))
    members = table.get(rest)
    if not members:
        return None
    return Layer(title=title, modules=tuple(f"{prefix}.{number}.{member}" for member in members))


def _without_prefix(name: str) -> str:
    if joined := next((prefix for prefix in _JOINED_PREFIXES if name.startswith(prefix)), ""):
        rest = name.removeprefix(joined)
        # `lycoris_` stands before the names of a transformer alone, or of a pipeline's.
        return f"transformer_{rest}" if joined == "lycoris_transformer_" and rest.startswith("blocks_") else rest
    while prefix := next((prefix for prefix in _DOTTED_PREFIXES if name.startswith(prefix)), ""):
        name = name.removeprefix(prefix)
    return name


def _refuse_twice(layers: Iterable[Layer]) -> None:
    owners: dict[str, Layer] = {}
    for layer in layers:
        for module in layer.modules:
            if other := owners.get(module):
                raise UnknownForm(f"it has the layer {module} twice, as {other.title!r} and {layer.title!r}")
            owners[module] = layer


OTHER_MODELS = "Begin with a LoRA of FLUX.1, or without warm_start_uri."
# The first that one of the keys matches says what the file is.
_KNOWN_FORMS = tuple(
    (re.compile(pattern), what, remedy)
    for pattern, what, remedy in (
        (
            r"norm[._](?:query|key)_norm\.|norm_(?:added_)?[qk]\.weight|^img_in\.lora",
            "it is a LoRA for control pictures (FLUX.1 Canny or Depth), which changes norms and the model's input",
            "Begin with a LoRA for text to image.",
        ),
        (
            r"(?:input|output|down|up)_blocks[._]|mid(?:dle)?_block[._]",
            "it is a LoRA of a UNet (Stable Diffusion 1.5, 2 or XL)",
            OTHER_MODELS,
        ),
        (r"joint_blocks[._]", "it is a LoRA of Stable Diffusion 3", OTHER_MODELS),
        (r"distilled_guidance_layer", "it is a LoRA of Chroma", OTHER_MODELS),
        (
            r"to_qkv_mlp_proj|stream_modulation|ff(?:_context)?[._]linear_(?:in|out)",
            "it is a LoRA of FLUX.2",
            OTHER_MODELS,
        ),
        (r"(?:img|txt)_mlp[._]net|(?:img|txt)_mod[._]1\.", "it is a LoRA of Qwen-Image", OTHER_MODELS),
        (r"(?:^|[._])blocks[._]\d+[._](?:self|cross)_attn", "it is a LoRA of a video model (Wan)", OTHER_MODELS),
        (
            r"guidance_(?:in|embedder)",
            "it adapts the embedding of guidance, which no job here trains",
            "Begin with a LoRA that leaves guidance_in alone.",
        ),
        (
            r"\.(?:diff|diff_b|set_weight|reshape_weight|w_norm|b_norm)$",
            "it has whole differences of weights (diff, set_weight) beside or in place of factors",
            "Extract a plain LoRA of a rank from it, and begin with that.",
        ),
        (r"ip_adapter|controlnet", "it is a ControlNet or an IP-Adapter, no LoRA", OTHER_MODELS),
        (
            r"\.(?:hada_t[12]|lokr_t2|lora_mid\.weight)$",
            "it has tensors of a convolution, and FLUX has linear layers alone",
            OTHER_MODELS,
        ),
        (
            r"\.scalar$",
            "it has LyCORIS' trained scalars (use_scalar), which programs read in different ways",
            "Save it with the scalars in the factors, as newer versions of LyCORIS do.",
        ),
    )
)
_ADAPTS = re.compile(r"lora|lokr_|hada_|lycoris")


def _unknown(key: str, keys: list[str]) -> UnknownForm:
    for form, what, remedy in _KNOWN_FORMS:
        if any(form.search(each) for each in keys):
            return UnknownForm(what, remedy)
    if not any(_ADAPTS.search(each) for each in keys):
        return UnknownForm(
            f"it is no adapter, but weights or something else: {len(keys):,} tensors, such as {key!r}",
            "Begin with a LoRA; what the trainer trains on is FLUXSMITH_BASE_MODEL, its operator's choice.",
        )
    return UnknownForm(f"FLUX.1 has no layer for its tensor {key!r}")
