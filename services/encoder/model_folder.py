"""What a model folder says of itself without being loaded: whether each part is there, whole, and FLUX.1's in shape.

Weights are checked by the headers of their safetensors files: against the files' lengths, and name by name and shape by
shape against the model that the part's config.json describes, built without memory on the meta device.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from services.common.base_check import BaseModelError

WEIGHTS = {"vae": "diffusion_pytorch_model", "text_encoder": "model", "text_encoder_2": "model"}
PARTS = (*WEIGHTS, "tokenizer", "tokenizer_2")
CLIP_TOKENS = 77
DEV_T5_TOKENS, SCHNELL_T5_TOKENS = 512, 256
REQUIRED: Mapping[str, Mapping[str, object]] = {
    "vae": {"_class_name": "AutoencoderKL", "latent_channels": 16},
    "text_encoder": {"model_type": "clip_text_model", "max_position_embeddings": CLIP_TOKENS},
    "text_encoder_2": {"model_type": "t5"},
}
NUMBERS: Mapping[str, tuple[str, ...]] = {
    "vae": ("shift_factor", "scaling_factor", "sample_size"),
    "text_encoder": ("vocab_size", "hidden_size"),
    "text_encoder_2": ("vocab_size", "d_model"),
}
BUILDERS: Mapping[str, Callable[[dict[str, Any]], nn.Module]] = {
    "vae": AutoencoderKL.from_config,
    "text_encoder": lambda config: CLIPTextModel(CLIPTextConfig.from_dict(config)),
    "text_encoder_2": lambda config: T5EncoderModel(T5Config.from_dict(config)),
}
VAE_BLOCKS = 4  # three of them halve the picture: a latent stands for 8 x 8 px
T5_COPY = "encoder.embed_tokens.weight"  # of shared.weight; some checkpoints hold it too
# What configurations and models raise for values that make no sense to them.
WRONG_VALUES = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError, StrictDataclassError)

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class FolderFacts:
    """What is known of the models before any is loaded."""

    latent_shift: float
    latent_scale: float
    default_resolution_px: int
    vocabularies: Mapping[str, int]
    """Number of token ids that each text encoder knows, by part."""


class BrokenPart(BaseModelError):
    """A part of the base model is not what FLUX.1 has there."""

    def __init__(self, part: Path, what: str) -> None:
        super().__init__(
            f"{part.name} of base model {part.parent} {what}",
            "Name a FLUX.1 model in diffusers' layout, and fetch or save that part anew if it was cut short.",
        )


def checked(folder: Path) -> FolderFacts:
    """Check VAE, CLIP and T5 of a folder in diffusers' layout, and say what their configurations hold."""
    configs = {part: _config(folder / part) for part in WEIGHTS}
    for part, config in configs.items():
        _check_shapes(folder / part, _expected_shapes(folder / part, config), _shapes(folder / part, WEIGHTS[part]))
    return FolderFacts(
        latent_shift=float(configs["vae"]["shift_factor"]),
        latent_scale=float(configs["vae"]["scaling_factor"]),
        default_resolution_px=int(configs["vae"]["sample_size"]),
        vocabularies={part: configs[part]["vocab_size"] for part in ("text_encoder", "text_encoder_2")},
    )


def made_for_tokens(folder: Path, tokenizer_length: int) -> int:
    """Length that T5's output is padded to: what the transformer was trained with.

    FLUX.1-dev was trained with 512 tokens and schnell, which has no guidance embedding, with 256 (as diffusers uses
    them). Their tokenizers may both say 512, so the transformer's configuration tells, where it is in the folder; a
    smaller model says its length by its tokenizer's `model_max_length`.
    """
    schnell = False
    if (folder / "transformer/config.json").is_file():
        schnell = _json(folder / "transformer", "config.json").get("guidance_embeds") is False
    return min(tokenizer_length, SCHNELL_T5_TOKENS if schnell else DEV_T5_TOKENS)


def _config(part: Path) -> dict[str, Any]:
    config = _json(part, "config.json")
    for name, value in REQUIRED[part.name].items():
        if config.get(name) != value:
            raise BrokenPart(part, f"has {name} {config.get(name)!r} in its config.json, not {value!r}")
    for name in NUMBERS[part.name]:
        if not isinstance(config.get(name), (int, float)) or isinstance(config[name], bool):
            raise BrokenPart(part, f"has {name} {config.get(name)!r} in its config.json, where a number belongs")
    if part.name == "vae" and len(config.get("block_out_channels") or ()) != VAE_BLOCKS:
        raise BrokenPart(part, f"has block_out_channels {config.get('block_out_channels')!r}, not {VAE_BLOCKS} of them")
    return config


def _expected_shapes(part: Path, config: dict[str, Any]) -> Shapes:
    try:
        with torch.device("meta"):
            model = BUILDERS[part.name](config)
    except WRONG_VALUES as error:
        raise BrokenPart(part, f"has a config.json that makes no model: {_first_line(error)}") from error
    return {_plain(name): tuple(parameter.shape) for name, parameter in model.named_parameters() if name != T5_COPY}


def _shapes(part: Path, stem: str) -> Shapes:
    """Names and shapes of all tensors in a part's weights, whether in one file or in shards with an index."""
    if (part / f"{stem}.safetensors").exists():
        return _header(part, f"{stem}.safetensors")
    index = f"{stem}.safetensors.index.json"
    if not (part / index).exists():
        raise BrokenPart(part, f"has neither {stem}.safetensors nor {index}")
    files = _json(part, index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise BrokenPart(part, f"has an {index} without a weight_map")
    return {name: shape for file in sorted(set(files.values())) for name, shape in _header(part, file).items()}


def _header(part: Path, file: str) -> Shapes:
    """Shapes by name of one safetensors file; opening it checks the header against the file's length."""
    try:
        with safe_open(part / file, framework="pt") as tensors:
            return {_plain(name): tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise BrokenPart(part, f"lacks {file}") from error
    except (SafetensorError, OSError) as error:
        raise BrokenPart(part, f"has {file} cut short or not in safetensors' format: {_first_line(error)}") from error


def _check_shapes(part: Path, expected: Shapes, found: Shapes) -> None:
    for name, shape in expected.items():
        if name == "shared.weight" and name not in found:
            name = T5_COPY  # noqa: PLW2901
        if name not in found:
            raise BrokenPart(part, f"lacks the weights {name}, which its config.json asks for")
        if found[name] != shape:
            raise BrokenPart(part, f"has {name} of shape {found[name]}, where its config.json asks for {shape}")


def _json(part: Path, file: str) -> dict[str, Any]:
    try:
        content = json.loads((part / file).read_bytes())
    except FileNotFoundError as error:
        raise BrokenPart(part, f"lacks {file}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise BrokenPart(part, f"has a {file} that is not JSON: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise BrokenPart(part, f"has a {file} that holds no object")
    return content


def _plain(name: str) -> str:
    return name.removeprefix("text_model.")  # as transformers wrote CLIP's names before version 5


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
