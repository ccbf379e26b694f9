"""Which model a folder holds, by what its configuration says: a text-to-image model of FLUX.1, or one that is refused.

The pipeline's class tells as much as the transformer's: FLUX.1 Kontext has the same transformer as FLUX.1-dev, and
would be trained as plain text-to-image without a word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.common.base_names import CONFIG, INDEX, LARGEST_JSON_BYTES, names_of_folder
from services.common.errors import ServiceError

PIPELINES = ("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline")
"""Pipelines of diffusers over a text-to-image model of FLUX.1."""
TRANSFORMER = "FluxTransformer2DModel"
CHANNELS = 64  # of an image token: 16 latent channels in 2 x 2 places
ROPE_AXES = 3
SUPPORTED = (
    "Name a text-to-image model of FLUX.1 in diffusers' layout with FLUXSMITH_BASE_MODEL: FLUX.1-dev, FLUX.1-Krea-dev, "
    "FLUX.1-schnell, or one that was trained from these."
)
FLUX_1: Mapping[str, Any] = {
    "in_channels": CHANNELS,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
}
"""Sizes of FLUX.1's transformer. dev and schnell differ in the embedding of guidance alone."""
DEFAULTS: Mapping[str, Any] = {
    **FLUX_1,
    "patch_size": 1,
    "out_channels": None,
    "guidance_embeds": False,
    "axes_dims_rope": (16, 56, 56),
}
"""What diffusers takes where a transformer's config.json says nothing."""
FLUX_1_DEV_CONFIG: Mapping[str, Any] = {**DEFAULTS, "guidance_embeds": True}
"""The configuration of FLUX.1-dev's transformer."""
_MOST = {"num_layers": 1000, "num_single_layers": 1000}
_LARGEST = 100_000
_OTHERS = {
    "FluxKontext": "FLUX.1 Kontext, which edits pictures: a job would train it on captions alone and spoil that",
    "FluxFill": "FLUX.1 Fill, which takes a masked picture and its mask beside the latents",
    "FluxControlNet": "a ControlNet of FLUX.1 together with its base",
    "FluxControl": "FLUX.1 Canny or Depth, which takes a control picture beside the latents",
    "FluxPriorRedux": "FLUX.1 Redux, which makes prompts of pictures and is no model of pictures itself",
    "Chroma": "Chroma, which has neither CLIP nor guidance and another transformer",
    "Flux2": "FLUX.2, which has other latents, text encoders and blocks",
}
# Kinds by a word of a name, such as FLUX.1-Fill-dev, where no pipeline's class is given.
_BY_NAME = {
    "kontext": "FluxKontext",
    "fill": "FluxFill",
    "canny": "FluxControl",
    "depth": "FluxControl",
    "redux": "FluxPriorRedux",
    "chroma": "Chroma",
}
_BY_CHANNELS = {384: "FLUX.1 Fill", 2 * CHANNELS: "FLUX.1 Canny or Depth"}


class BaseModelError(ServiceError):
    """The base model cannot be loaded from where the settings say."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message, reason="BASE_MODEL_INVALID", remedy=remedy)


def refuse_other_model(folder: Path) -> None:
    """Raise `BaseModelError` unless a folder holds a text-to-image model of FLUX.1, as far as its configuration tells.

    Where there is no model_index.json the model's names count, and where these say nothing either, see `assumption`.
    """
    index = _json(folder, INDEX)
    if index is None:
        _refuse_other_name(folder)
    if index is not None and (name := index.get("_class_name")) not in PIPELINES:
        raise BaseModelError(f"base model {folder} is {_described(name)}, by the {INDEX} in it", SUPPORTED)
    transformer_config(folder)


def transformer_config(folder: Path) -> dict[str, Any] | None:
    """The transformer's configuration with diffusers' defaults, checked; None where there is none.

    Raises `BaseModelError` for another class, other channels, and sizes that are none.
    """
    found = _json(folder, CONFIG)
    if found is None:
        return None
    if (name := found.get("_class_name")) != TRANSFORMER:
        raise BaseModelError(f"base model {folder} is {_described(name)}, by the {CONFIG} in it", SUPPORTED)
    config = {**DEFAULTS, **found}
    for size in (*FLUX_1, "patch_size", "out_channels"):
        value = config[size]
        fewest = 0 if size == "num_single_layers" else 1
        if (value is not None or DEFAULTS[size] is not None) and not (
            type(value) is int and fewest <= value <= _MOST.get(size, _LARGEST)
        ):
            raise _broken(folder, CONFIG, f"has {size} {_shown(value)}")
    if not isinstance(config["guidance_embeds"], bool):
        raise _broken(folder, CONFIG, f"has guidance_embeds {_shown(config['guidance_embeds'])}")
    _refuse_other_channels(folder, config)
    _refuse_broken_rope(folder, config)
    return config


def assumption(folder: Path) -> str:
    """What is taken for granted of a folder that does not say which model it is; empty where it says so."""
    if (folder / INDEX).is_file():
        return ""
    return f"{folder} has no {INDEX}, which would tell FLUX.1 Kontext from FLUX.1-dev; it is taken for text-to-image"


def _refuse_other_name(folder: Path) -> None:
    for name in names_of_folder(folder):
        words = re.findall("[a-z]+", name.lower())
        if kind := next((kind for word, kind in _BY_NAME.items() if word in words), ""):
            raise BaseModelError(
                f"base model {folder} has no {INDEX} and is {_OTHERS[kind]}, by its name {_shown(name)}",
                f"{SUPPORTED} If it is one, put the {INDEX} that belongs to it beside its parts.",
            )


def _refuse_other_channels(folder: Path, config: Mapping[str, Any]) -> None:
    channels = (config["in_channels"], config["out_channels"] or config["in_channels"], config["patch_size"])
    if channels == (CHANNELS, CHANNELS, 1):
        return
    kind = _BY_CHANNELS.get(config["in_channels"], "not for text to image")
    raise BaseModelError(
        f"base model {folder} is {kind}: its transformer takes {channels[0]} channels and gives {channels[1]} in "
        f"patches of {channels[2]}, where FLUX.1-dev and schnell have {CHANNELS}, {CHANNELS} and 1",
        SUPPORTED,
    )


def _refuse_broken_rope(folder: Path, config: Mapping[str, Any]) -> None:
    """Positions of an image token are a number and two places: each turns its share of a head's channels, in pairs."""
    shares, head = config["axes_dims_rope"], config["attention_head_dim"]
    if (
        not isinstance(shares, (list, tuple))
        or len(shares) != ROPE_AXES
        or not all(type(share) is int and share > 0 and share % 2 == 0 for share in shares)
        or sum(shares) != head
    ):
        wanted = f"{ROPE_AXES} even numbers over 0 that add up to attention_head_dim, {head}"
        raise _broken(folder, CONFIG, f"has axes_dims_rope {_shown(shares)}, not {wanted}")


def _described(name: object) -> str:
    if not isinstance(name, str) or not name:
        return "of no class that is named"
    other = next((what for prefix, what in _OTHERS.items() if name.startswith(prefix)), "")
    return f"{other} ({_shown(name)})" if other else f"a {_shown(name)}"


def _json(folder: Path, name: str) -> dict[str, Any] | None:
    path = folder / name
    try:
        if not path.exists():
            return None
        with path.open("rb") as file:
            text = file.read(LARGEST_JSON_BYTES + 1)
        if len(text) > LARGEST_JSON_BYTES:
            raise ValueError(f"over {LARGEST_JSON_BYTES} bytes")
        content = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise _broken(folder, name, f"cannot be read as JSON ({_first_line(error)})") from error
    if not isinstance(content, dict):
        raise _broken(folder, name, "holds no object")
    return content


def _broken(folder: Path, name: str, what: str) -> BaseModelError:
    return BaseModelError(f"{name} of base model {folder} {what}", f"Fetch or save that file anew. {SUPPORTED}")


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]
