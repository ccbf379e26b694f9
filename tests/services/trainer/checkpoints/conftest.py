"""A FLUX of two blocks, small enough to be trained in every way that there is."""

from __future__ import annotations

import pytest
import torch
from diffusers import FluxTransformer2DModel

from services.trainer.transformer import prepared
from tests.services.trainer.conftest import CLIP_WIDTH, T5_WIDTH


@pytest.fixture(scope="session")
def two_blocks() -> FluxTransformer2DModel:
    """A transformer of random weights. Shared: whoever attaches something to it takes it off again."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = FluxTransformer2DModel(
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=32,
            num_attention_heads=2,
            joint_attention_dim=T5_WIDTH,
            pooled_projection_dim=CLIP_WIDTH,
            guidance_embeds=False,
            axes_dims_rope=(8, 12, 12),
        )
    return prepared(transformer)
