"""The encoder's models with random weights in their real sizes: seconds and memory for one caption and one image.

T5 is loaded by the encoder's own function, only that the checkpoint is a dictionary instead of files. Each call is what
the encoder calls (`services/encoder/inference.py`), and ends on the CPU.

Legend: B batch, C channels, H/W height and width in px, S tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from benchmarks.measure import Durations, PeakMemory, log, peak_memory, reset_peak, timed, weights_gb
from benchmarks.scales import Scale
from services.encoder.loading import LoadChoices, t5_from

SEED = 0
DTYPE = torch.bfloat16


@dataclass(frozen=True, kw_only=True)
class EncodeFigures:
    """One model and one input."""

    input: str
    weights_gb: dict[str, float]
    """Size of the weights by type."""
    encode: Durations
    peak_memory: PeakMemory | None
    finite: bool
    """Whether every number of the output is."""


def measure_t5(scale: Scale, device: torch.device) -> EncodeFigures:
    """T5 in 8 bit on one caption, padded to the full length and unmasked."""
    log.info("T5 in 8 bit")
    t5 = random_t5(scale, LoadChoices(device=device, dtype=DTYPE, t5_precision="int8", vae_tiling=False))
    ids_BS = _ids(scale.t5["vocab_size"], scale.t5_tokens, device)

    def encode() -> Tensor:
        output_SD: Tensor = t5(ids_BS, output_hidden_states=False)[0][0]
        return output_SD.to(DTYPE).cpu()

    return _measured(t5, f"caption of {scale.t5_tokens} tokens", encode, scale, device)


def measure_clip(scale: Scale, device: torch.device) -> EncodeFigures:
    """CLIP's text model on one caption, to the pooled output."""
    log.info("CLIP")
    clip = random_clip(scale, device)
    tokens = scale.clip["max_position_embeddings"]
    ids_BS = _ids(scale.clip["vocab_size"], tokens, device)

    def encode() -> Tensor:
        pooled_D: Tensor = clip(ids_BS, output_hidden_states=False).pooler_output[0]
        return pooled_D.cpu()

    return _measured(clip, f"caption of {tokens} tokens", encode, scale, device)


def measure_vae(scale: Scale, device: torch.device) -> EncodeFigures:
    """The VAE on one image, to the mean and log-variance of its posterior."""
    log.info("VAE")
    vae = random_vae(scale, device)
    side_px = max(scale.resolutions_px)
    pixels_BCHW = torch.rand(1, 3, side_px, side_px, device=device, dtype=DTYPE) * 2 - 1

    def encode() -> Tensor:
        posterior = vae.encode(pixels_BCHW).latent_dist
        return torch.stack([posterior.mean[0].cpu(), posterior.logvar[0].cpu()])

    return _measured(vae, f"image of {side_px} x {side_px} px", encode, scale, device)


def random_clip(scale: Scale, device: torch.device) -> CLIPTextModel:
    """CLIP's text model with random weights."""
    with torch.device(device):
        return CLIPTextModel(CLIPTextConfig(**scale.clip)).bfloat16().eval()


def random_vae(scale: Scale, device: torch.device) -> AutoencoderKL:
    """The VAE with random weights."""
    with torch.device(device):
        return AutoencoderKL(**scale.vae).bfloat16().eval()


def random_t5(scale: Scale, choices: LoadChoices) -> T5EncoderModel:
    """T5 with random weights, put on its device and quantised there by the encoder's own loading."""
    return t5_of(random_t5_weights(scale.t5, choices.device), scale.t5, choices)


def t5_of(weights: Mapping[str, Tensor], config: Mapping[str, Any], choices: LoadChoices) -> T5EncoderModel:
    """T5 of these weights, by the encoder's own loading: as if they came from files."""
    source = {"pretrained_model_name_or_path": None, "config": T5Config(**config), "state_dict": dict(weights)}
    return t5_from(source, choices)


def random_t5_weights(config: Mapping[str, Any], device: torch.device) -> dict[str, Tensor]:
    """T5's weights in bf16 on the CPU (9.5 GB for T5-XXL), drawn on the device as T5 is initialised for training."""
    with torch.device("meta"):
        empty = T5EncoderModel(T5Config(**config))
    generator = torch.Generator(device).manual_seed(SEED)
    width, heads_width = config["d_model"], config["num_heads"] * config["d_kv"]
    spread = {  # as T5PreTrainedModel._init_weights has it
        "shared": 1.0,
        "q": (width * config["d_kv"]) ** -0.5,
        "o": heads_width**-0.5,
        "wo": config["d_ff"] ** -0.5,
    }
    weights = {}
    for name, parameter in empty.named_parameters():
        weight = torch.ones(parameter.shape, device=device, dtype=DTYPE)
        if parameter.dim() > 1:  # T5 has no biases: a vector is a norm's
            weight.normal_(0.0, spread.get(name.split(".")[-2], width**-0.5), generator=generator)
        if name != "encoder.embed_tokens.weight":  # is shared.weight, and not in the published checkpoint either
            weights[name] = weight.cpu()
    return weights


def _ids(vocabulary: int, tokens: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(vocabulary, (1, tokens), generator=generator).to(device)


def _measured(
    model: nn.Module, what: str, encode: Callable[[], Tensor], scale: Scale, device: torch.device
) -> EncodeFigures:
    reset_peak(device)
    with torch.inference_mode():
        finite = bool(torch.isfinite(encode()).all())
        duration = timed(encode, warmup=scale.warmup_steps, repetitions=scale.measured_steps)
    return EncodeFigures(
        input=what, weights_gb=weights_gb(model), encode=duration, peak_memory=peak_memory(device), finite=finite
    )
