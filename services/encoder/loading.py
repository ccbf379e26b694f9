"""Loading the encoder's models, each on its own: VAE, CLIP, T5 in a precision by choice, and the tokenizers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError
from transformers import AutoTokenizer, BitsAndBytesConfig, CLIPTextModel, CLIPTokenizer, T5EncoderModel

from services.common.base_check import BaseModelError
from services.encoder.inference import CaptionTokenizer, Loaders
from services.encoder.model_folder import CLIP_TOKENS, WRONG_VALUES, BrokenPart, made_for_tokens

T = TypeVar("T")
Precision = Literal["int8", "nf4", "bf16", "fp32"]
TILE_PX = 512


@dataclass(frozen=True, kw_only=True)
class LoadChoices:
    """How models are loaded: with the files, all that decides their output."""

    device: torch.device
    dtype: torch.dtype
    """Of the VAE's and CLIP's weights, of T5's unquantised ones, and of everything cached."""
    t5_precision: Precision
    vae_tiling: bool


def loaders(folder: Path, choices: LoadChoices) -> Loaders:
    """How each part is loaded from a folder in diffusers' layout."""
    return Loaders(
        vae=lambda: _loaded(folder / "vae", lambda: load_vae(folder, choices)),
        clip=lambda: _loaded(folder / "text_encoder", lambda: load_clip(folder, choices)),
        t5=lambda: _loaded(folder / "text_encoder_2", lambda: load_t5(folder, choices)),
    )


def load_vae(folder: Path, choices: LoadChoices) -> AutoencoderKL:
    """The VAE, tiled by choice."""
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", dtype=choices.dtype).to(choices.device).eval()
    return tiled(vae) if choices.vae_tiling else vae


def tiled(vae: AutoencoderKL) -> AutoencoderKL:
    """Switch tiling on, in tiles of 512 px at most.

    diffusers takes the VAE's sample_size for a tile, which is 1024 px for FLUX.1's: no picture of 1024 x 1024 px would
    be divided, and the option would save nothing where it is wanted.
    """
    vae.enable_tiling()
    vae.tile_sample_min_size = min(vae.tile_sample_min_size, TILE_PX)
    vae.tile_latent_min_size = vae.tile_sample_min_size // 2 ** (len(vae.config.block_out_channels) - 1)
    return vae


def load_clip(folder: Path, choices: LoadChoices) -> CLIPTextModel:
    """CLIP's text encoder."""
    return (
        CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=choices.dtype).to(choices.device).eval()
    )


def load_t5(folder: Path, choices: LoadChoices) -> T5EncoderModel:
    """T5's encoder in the precision chosen."""
    return t5_from({"pretrained_model_name_or_path": folder, "subfolder": "text_encoder_2"}, choices)


def t5_from(source: Mapping[str, Any], choices: LoadChoices) -> T5EncoderModel:
    """T5 from `source`, which is how `from_pretrained` is told where configuration and weights are.

    transformers keeps T5's `wo` layers out of quantisation, and in float32 where the rest is float16, since float16
    overflows there. bfloat16 has float32's range: `wo` may be in it, which with T5-XXL is 2 GB instead of 4. Weights go
    to the device one by one and are quantised there, so a GPU never holds the whole unquantised model.
    """
    unquantised = {"bf16": torch.bfloat16, "fp32": torch.float32}.get(choices.t5_precision)
    quantisation = {
        "int8": BitsAndBytesConfig(load_in_8bit=True),
        "nf4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=choices.dtype),
    }.get(choices.t5_precision)
    return T5EncoderModel.from_pretrained(
        **source,
        quantization_config=quantisation,
        device_map={"": choices.device},
        dtype=unquantised or choices.dtype,
    ).eval()


def load_tokenizers(
    folder: Path, vocabularies: Mapping[str, int], t5_tokens: int | None = None
) -> tuple[CaptionTokenizer, CaptionTokenizer]:
    """CLIP's tokenizer and T5's, each checked to know no token that its encoder does not.

    `t5_tokens` is the length of T5's output; None means what the base model was made for.
    """
    clip = _loaded(folder / "tokenizer", lambda: CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"))
    t5 = _loaded(folder / "tokenizer_2", lambda: AutoTokenizer.from_pretrained(folder, subfolder="tokenizer_2"))
    for part, encoder, tokenizer in (("tokenizer", "text_encoder", clip), ("tokenizer_2", "text_encoder_2", t5)):
        if not tokenizer.is_fast:
            raise BrokenPart(folder / part, "is of a kind that does not say where in a caption its tokens lie")
        if not 2 < len(tokenizer) <= vocabularies[encoder]:
            raise BrokenPart(
                folder / part, f"has {len(tokenizer)} tokens, and {encoder} a vocabulary of {vocabularies[encoder]}"
            )
    return (
        CaptionTokenizer(clip, CLIP_TOKENS),
        CaptionTokenizer(t5, t5_tokens or made_for_tokens(folder, t5.model_max_length)),
    )


def _loaded(part: Path, load: Callable[[], T]) -> T:
    """What `load` gives, its failures as ours."""
    try:
        return load()
    except torch.OutOfMemoryError as error:
        raise BaseModelError(
            f"no memory is left on the device to load {part.name}: {str(error).splitlines()[0]}",
            "Set FLUXSMITH_ENCODER_MODELS=one, FLUXSMITH_ENCODER_T5_PRECISION=int8 or nf4, or free the device.",
        ) from error
    except (*WRONG_VALUES, OSError, SafetensorError, ImportError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BrokenPart(part, f"cannot be loaded: {reason}") from error
