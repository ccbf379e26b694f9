"""Flow matching as FLUX was trained: sigma = 1 is pure noise, sigma = 0 the picture, the path between them straight.

    noisy = (1 - sigma) * clean + sigma * noise        the network predicts d noisy / d sigma = noise - clean

diffusers' transformer takes sigma as its timestep (and multiplies it by 1000 itself).

Legend: B batch, C latent channels, H/W latent height and width, N image tokens (N = H/2 * W/2), D packed channels
(D = 4 C), S caption tokens, T caption width, P pooled caption width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from einops import rearrange
from torch import Tensor

from services.trainer.packing import image_ids, pack, text_ids, unpack

SIGMA_MEAN = 0.5  # of the logit; above 0 because what is drawn, as opposed to how finely, is decided in heavy noise


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What the transformer knows of a caption: T5's states and CLIP's pooled state."""

    states_BST: Tensor
    pooled_BP: Tensor


def interpolate(clean_BCHW: Tensor, noise_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
    """Return the point at `sigma` on the straight path from the picture (0) to noise (1)."""
    return torch.lerp(clean_BCHW, noise_BCHW, rearrange(sigma_B, "b -> b 1 1 1"))


def predict_velocity(
    transformer: FluxTransformer2DModel, noisy_BCHW: Tensor, sigma_B: Tensor, condition: Condition, guidance_B: Tensor
) -> Tensor:
    """The transformer's estimate of noise - clean, (B, C, H, W), in the dtype that it computes in."""
    height, width = noisy_BCHW.shape[-2:]
    device = noisy_BCHW.device
    velocity_BND = transformer(
        hidden_states=pack(noisy_BCHW),
        encoder_hidden_states=condition.states_BST,
        pooled_projections=condition.pooled_BP,
        timestep=sigma_B,
        guidance=guidance_B,
        img_ids=image_ids(height, width, device),
        txt_ids=text_ids(condition.states_BST.shape[1], device),
        return_dict=False,
    )[0]
    return unpack(velocity_BND, height, width)


def draw_sigma(batch: int) -> Tensor:
    """Logit-normal sigma, (B,) in 0..1. One draw from each B-th of the distribution: less noise in the gradient."""
    share_B = (torch.arange(batch) + torch.rand(batch)) / batch
    return torch.sigmoid(SIGMA_MEAN + torch.special.ndtri(share_B.clamp(1e-4, 1 - 1e-4)))


def to_model_space(latents_BCHW: Tensor, vae: AutoencoderKL) -> Tensor:
    """Shift and scale the VAE's latents to the mean 0 and deviation 1 that the transformer works in."""
    shifted_BCHW: Tensor = (latents_BCHW - vae.config.shift_factor) * vae.config.scaling_factor
    return shifted_BCHW
