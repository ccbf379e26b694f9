"""The trained parts together: caption encoders and transformer as one module, as a training step needs them.

Legend: B batch, C latent channels, H/W latent height and width, S tokens.
"""

from __future__ import annotations

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextModel, T5EncoderModel

from tools.flux_tiny.flow import Condition, predict_velocity
from tools.flux_tiny.text import Tokenizers, new_clip, new_t5


class TinyFlux(nn.Module):
    """From noisy latents and token ids to a velocity."""

    def __init__(self, *, clip: CLIPTextModel, t5: T5EncoderModel, transformer: FluxTransformer2DModel) -> None:
        super().__init__()
        self.clip = clip
        self.t5 = t5
        self.transformer = transformer

    def forward(
        self, noisy_BCHW: Tensor, sigma_B: Tensor, clip_BS: Tensor, t5_BS: Tensor, guidance_B: Tensor
    ) -> Tensor:
        """Estimate noise - clean, (B, C, H, W) float32, with the products in bfloat16."""
        # Measured on two cores: the fused attention kernel's backward takes a third of a step at these short lengths.
        with torch.autocast("cpu", dtype=torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            condition = encode(self.clip, self.t5, clip_BS, t5_BS)
            return predict_velocity(self.transformer, noisy_BCHW, sigma_B, condition, guidance_B).float()


def encode(clip: nn.Module, t5: nn.Module, clip_BS: Tensor, t5_BS: Tensor) -> Condition:
    """FLUX's conditioning: T5 over the padded caption without a mask, CLIP's state at the first end mark."""
    return Condition(states_BST=t5(t5_BS).last_hidden_state, pooled_BP=clip(clip_BS).pooler_output)


def new_model(tokenizers: Tokenizers) -> TinyFlux:
    """Untrained, with a guidance embedding that adds nothing: until it is distilled, the model ignores guidance."""
    transformer = new_transformer()
    guidance = transformer.time_text_embed.guidance_embedder
    nn.init.zeros_(guidance.linear_2.weight)
    nn.init.zeros_(guidance.linear_2.bias)
    guidance.requires_grad_(False)
    return TinyFlux(clip=new_clip(tokenizers.clip), t5=new_t5(tokenizers.t5), transformer=transformer)


def new_transformer() -> FluxTransformer2DModel:
    """FLUX.1-dev's transformer with 6 heads of 32 instead of 24 of 128, and 2 + 4 blocks instead of 19 + 38."""
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=6,
        joint_attention_dim=128,
        pooled_projection_dim=64,
        guidance_embeds=True,
        axes_dims_rope=(8, 12, 12),
    )
