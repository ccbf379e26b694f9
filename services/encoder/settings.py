"""Settings of the encoder, read from the environment once. Environment: `FLUXSMITH_...`, `FLUXSMITH_ENCODER_...`."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class EncoderSettings(BaseSettings):
    """What only the encoder needs."""

    model_config = SettingsConfigDict(env_prefix="FLUXSMITH_ENCODER_", frozen=True, hide_input_in_errors=True)

    address: str = "127.0.0.1:7401"
    """Host and port to serve on."""
    stop_grace_s: float = Field(default=8.0, ge=1)
    """Seconds from SIGTERM to the end, whatever the models do: an encoding under way is taken up by the next encoder. A
    second signal ends it at once."""
    t5_precision: Literal["int8", "nf4", "bf16", "fp32"] = "int8"
    """Precision of the T5 weights, on CUDA and on the CPU; `int8` (LLM.int8) and `nf4` are done by bitsandbytes."""
    t5_tokens: int | None = Field(default=None, ge=8, le=512)
    """Length in tokens that T5's output is padded to; unset means what the base model was made for: 512 for FLUX.1-dev,
    256 for schnell. Another one than the transformer knows from its training gives worse results."""
    models: Literal["all", "one"] = "all"
    """`all` keeps VAE, CLIP and T5 in memory; `one` either the VAE, or CLIP and T5, freeing the other first."""
    vae_tiling: bool = False
    """Run the VAE on overlapping tiles of 512 px: less memory for larger pictures, and not quite the same output."""
    decode_threads: int = Field(default=min(4, os.cpu_count() or 1), ge=1, le=64)
    """Images decoded at a time, ahead of the models; each may take 16 bytes a pixel."""
    max_image_bytes: int = Field(default=64 * 1024 * 1024, ge=1024)
    """Largest image file in bytes."""
    max_image_pixels: int = Field(default=50_000_000, ge=64 * 64)
    """Largest image in pixels, checked before decoding; decoding takes about 16 bytes a pixel at its peak."""
    max_caption_bytes: int = Field(default=8192, ge=1, le=32 * 1024)
    """Longest caption in bytes of UTF-8; clients send none over 32 KiB."""
    max_samples: int = Field(default=10_000, ge=1)
    """Most samples in one dataset."""
    collect_interval_s: float = Field(default=6 * 3600, ge=0)
    """Seconds between collections of objects that nothing needs any more; 0 means never."""
    collect_grace_s: float = Field(default=24 * 3600, ge=60)
    """Seconds that an object must have been without use before it is collected."""

    @property
    def grace(self) -> timedelta:
        """The grace period of collection."""
        return timedelta(seconds=self.collect_grace_s)
