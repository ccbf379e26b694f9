"""What is measured: the real sizes of FLUX.1-dev, and tiny ones that take the same path through the code on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.common.base_check import FLUX_1_DEV_CONFIG

T5_XXL: Mapping[str, Any] = {
    "d_model": 4096,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "d_kv": 64,
    "feed_forward_proj": "gated-gelu",
    "vocab_size": 32128,
}
CLIP_L: Mapping[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "max_position_embeddings": 77,
    "vocab_size": 49408,
    "hidden_act": "quick_gelu",
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
FLUX_VAE: Mapping[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "sample_size": 1024,
}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Configurations of the models and sizes of their inputs."""

    name: str
    """`full` or `tiny`; part of the result's file name."""
    transformer: Mapping[str, Any]
    """Arguments of `FluxTransformer2DModel`."""
    t5: Mapping[str, Any]
    """Arguments of `T5Config`."""
    clip: Mapping[str, Any]
    """Arguments of `CLIPTextConfig`."""
    vae: Mapping[str, Any]
    """Arguments of `AutoencoderKL`."""
    resolutions_px: tuple[int, ...]
    """Sides of the square images trained on; the largest is also the one the VAE encodes."""
    t5_tokens: int
    """Length of a caption's T5 embedding, padding included."""
    rank: int
    """Rank of the LoRA matrices."""
    warmup_steps: int
    """Training steps and encodings that are run before any is timed."""
    measured_steps: int
    """Training steps and encodings timed after that."""
    matmul_size: int
    """Rows and columns of the square product that shows the device's own rate."""


FULL = Scale(
    name="full",
    transformer=FLUX_1_DEV_CONFIG,
    t5=T5_XXL,
    clip=CLIP_L,
    vae=FLUX_VAE,
    resolutions_px=(512, 1024),
    t5_tokens=512,
    rank=16,
    warmup_steps=3,
    measured_steps=7,
    matmul_size=8192,
)
TINY = Scale(
    name="tiny",
    transformer={
        **FLUX_1_DEV_CONFIG,
        "num_layers": 2,
        "num_single_layers": 4,
        "attention_head_dim": 32,
        "num_attention_heads": 6,
        "joint_attention_dim": 128,
        "pooled_projection_dim": 64,
        "axes_dims_rope": (8, 12, 12),
    },
    t5={**T5_XXL, "d_model": 128, "d_ff": 256, "num_layers": 2, "num_heads": 4, "d_kv": 32, "vocab_size": 2560},
    clip={
        **CLIP_L,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "projection_dim": 64,
        "vocab_size": 2304,
    },
    vae={**FLUX_VAE, "block_out_channels": (32, 32, 64, 64), "layers_per_block": 1, "sample_size": 32},
    resolutions_px=(32, 64),
    t5_tokens=32,
    rank=16,
    warmup_steps=1,
    measured_steps=2,
    matmul_size=256,
)
SCALES = {scale.name: scale for scale in (FULL, TINY)}
