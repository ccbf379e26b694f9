"""Memory of the encoder's three models as the service holds them: together, or text and image one after the other.

The models have random weights in their real sizes; the class that loads, frees and runs them is the encoder's own. The
goal it is held against: FLUX.1-dev's encoders at 1024 x 1024 px within 10 GiB of GPU memory.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from benchmarks.encoding import DTYPE, SEED, random_clip, random_t5, random_vae
from benchmarks.measure import PeakMemory, log, peak_memory, release, reset_peak
from benchmarks.scales import Scale
from services.encoder.inference import CaptionTokenizer, EncoderModels, Loaders
from services.encoder.loading import LoadChoices, Precision, load_tokenizers, tiled

GOAL_GB = 10 * 1024**3 / 1e9
TOKENIZERS = Path(__file__).resolve().parent.parent / "assets" / "flux-tiny"  # any will do: a caption is padded anyway
CASES: tuple[tuple[Precision, bool, bool], ...] = (
    ("int8", False, False),
    ("int8", False, True),
    ("int8", True, False),
    ("nf4", True, True),
)


@dataclass(frozen=True, kw_only=True)
class ServiceMemory:
    """One way to hold the models, from nothing loaded to one caption and one image encoded."""

    t5_precision: Precision
    one_at_a_time: bool
    """Text part and image part in turn, the other one freed."""
    vae_tiling: bool
    resolution_px: int
    """Side of the image."""
    seconds: float
    """Loading (the drawing of random weights included), one caption, one image."""
    peak_memory: PeakMemory | None
    """Loading included."""
    within_goal: bool | None
    """Whether what was reserved of the device at the most is at most 10 GiB."""


def measure_service_memory(scale: Scale, device: torch.device) -> tuple[ServiceMemory, ...]:
    """Each way in turn, on an empty device."""
    return tuple(_measured(scale, device, *case) for case in CASES)


def _measured(
    scale: Scale, device: torch.device, precision: Precision, one_at_a_time: bool, vae_tiling: bool
) -> ServiceMemory:
    log.info("encoders: T5 in %s, one at a time %s, VAE in tiles %s", precision, one_at_a_time, vae_tiling)
    choices = LoadChoices(device=device, dtype=DTYPE, t5_precision=precision, vae_tiling=vae_tiling)
    side_px = max(scale.resolutions_px)
    pixels_CHW = np.random.default_rng(SEED).uniform(-1, 1, (3, side_px, side_px)).astype(np.float32)
    models = random_models(scale, choices, one_at_a_time=one_at_a_time)
    reset_peak(device)
    start = time.perf_counter()
    if not one_at_a_time:
        models.load("vae", "text_encoder", "text_encoder_2")
    models.encode_caption("a caption of a few words")
    models.encode_image(pixels_CHW)
    seconds, peak = time.perf_counter() - start, peak_memory(device)
    models.free(*models.loaded())
    release()
    return ServiceMemory(
        t5_precision=precision,
        one_at_a_time=one_at_a_time,
        vae_tiling=vae_tiling,
        resolution_px=side_px,
        seconds=seconds,
        peak_memory=peak,
        within_goal=peak.reserved_gb <= GOAL_GB if peak else None,
    )


def random_models(scale: Scale, choices: LoadChoices, *, one_at_a_time: bool) -> EncoderModels:
    """The encoder's models with random weights, nothing loaded yet."""
    clip_tokenizer, t5_tokenizer = load_tokenizers(
        TOKENIZERS, {"text_encoder": scale.clip["vocab_size"], "text_encoder_2": scale.t5["vocab_size"]}
    )

    def vae() -> AutoencoderKL:
        return tiled(random_vae(scale, choices.device)) if choices.vae_tiling else random_vae(scale, choices.device)

    return EncoderModels(
        loaders=Loaders(vae=vae, clip=lambda: random_clip(scale, choices.device), t5=lambda: random_t5(scale, choices)),
        clip_tokenizer=clip_tokenizer,
        t5_tokenizer=CaptionTokenizer(t5_tokenizer.tokenizer, scale.t5_tokens),
        device=choices.device,
        dtype=choices.dtype,
        latent_shift=scale.vae["shift_factor"],
        latent_scale=scale.vae["scaling_factor"],
        default_resolution_px=scale.vae["sample_size"],
        image_fingerprint="",
        text_fingerprint="",
        fingerprint="",
        one_at_a_time=one_at_a_time,
    )
