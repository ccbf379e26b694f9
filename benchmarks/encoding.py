"""The encoder's models with random weights in their real sizes: seconds and memory for one caption and one image.

T5 is loaded as the encoder loads it, through `from_pretrained` with bitsandbytes' 8 bit, only that the checkpoint is a
dictionary made on the device. Each call is the encoder's own (`services/encoder/models.py`), which ends on the CPU.

Legend: B batch, C channels, H/W height and width in px, S tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from benchmarks.measure import Durations, PeakMemory, log, peak_memory, reset_peak, timed, weights_gb
from benchmarks.scales import Scale

SEED = 0
WEIGHT_STD = 0.02
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
    t5 = random_t5(scale, device)
    ids_BS = _ids(scale.t5["vocab_size"], scale.t5_tokens, device)

    def encode() -> Tensor:
        output_SD: Tensor = t5(ids_BS, output_hidden_states=False)[0][0]
        return output_SD.to(DTYPE).cpu()

    return _measured(t5, f"caption of {scale.t5_tokens} tokens", encode, scale, device)


def measure_clip(scale: Scale, device: torch.device) -> EncodeFigures:
    """CLIP's text model on one caption, to the pooled output."""
    log.info("CLIP")
    with torch.device(device):
        clip = CLIPTextModel(CLIPTextConfig(**scale.clip)).bfloat16().eval()
    tokens = scale.clip["max_position_embeddings"]
    ids_BS = _ids(scale.clip["vocab_size"], tokens, device)

    def encode() -> Tensor:
        pooled_D: Tensor = clip(ids_BS, output_hidden_states=False).pooler_output[0]
        return pooled_D.cpu()

    return _measured(clip, f"caption of {tokens} tokens", encode, scale, device)


def measure_vae(scale: Scale, device: torch.device) -> EncodeFigures:
    """The VAE on one image, to the mean and log-variance of its posterior."""
    log.info("VAE")
    with torch.device(device):
        vae = AutoencoderKL(**scale.vae).bfloat16().eval()
    side_px = max(scale.resolutions_px)
    pixels_BCHW = torch.rand(1, 3, side_px, side_px, device=device, dtype=DTYPE) * 2 - 1

    def encode() -> Tensor:
        posterior = vae.encode(pixels_BCHW).latent_dist
        return torch.stack([posterior.mean[0].cpu(), posterior.logvar[0].cpu()])

    return _measured(vae, f"image of {side_px} x {side_px} px", encode, scale, device)


def random_t5(scale: Scale, device: torch.device) -> T5EncoderModel:
    """T5 as the encoder holds it on CUDA: 8 bit where bitsandbytes does it, the rest as transformers decides.

    The dictionary of bf16 weights (9.5 GB for T5-XXL) lives on the device only while this function runs.
    """
    config = T5Config(**scale.t5)
    with torch.device("meta"):
        empty = T5EncoderModel(config)
    generator = torch.Generator(device).manual_seed(SEED)
    weights = {
        name: _random_weight(parameter.shape, device, generator)
        for name, parameter in empty.named_parameters()
        if name != "encoder.embed_tokens.weight"  # is shared.weight, and not in the published checkpoint either
    }
    return T5EncoderModel.from_pretrained(
        None,
        config=config,
        state_dict=weights,
        quantization_config=BitsAndBytesConfig(load_in_8bit=True),
        device_map={"": device},
        dtype=torch.float16,
    ).eval()


def _random_weight(shape: torch.Size, device: torch.device, generator: torch.Generator) -> Tensor:
    if len(shape) == 1:  # T5 has no biases: this is a norm's
        return torch.ones(shape, device=device, dtype=DTYPE)
    return torch.empty(shape, device=device, dtype=DTYPE).normal_(0.0, WEIGHT_STD, generator=generator)


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
