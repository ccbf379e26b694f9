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
    velocity_BND = transformer(
        hidden_states=pack(noisy_BCHW),
        encoder_hidden_states=condition.states_BST,
        pooled_projections=condition.pooled_BP,
        timestep=sigma_B,
        guidance=guidance_B,
        img_ids=image_ids(height // 2, width // 2),
        txt_ids=torch.zeros(condition.states_BST.shape[1], 3),
        return_dict=False,
    )[0]
    return unpack(velocity_BND, height)


def pack(latents_BCHW: Tensor) -> Tensor:
    """2 x 2 latent pixels to one token: (B, C, H, W) to (B, N, D), as diffusers' FluxPipeline packs."""
    return rearrange(latents_BCHW, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2)


def unpack(tokens_BND: Tensor, height: int) -> Tensor:
    """Undo `pack`; `height` is the latent's, in latent pixels."""
    return rearrange(tokens_BND, "b (h w) (c p q) -> b c (h p) (w q)", h=height // 2, p=2, q=2)


def image_ids(rows: int, columns: int) -> Tensor:
    """Rotary positions of the image tokens, (N, 3) float32: zero, row, column."""
    row_HW, column_HW = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return rearrange([torch.zeros_like(row_HW), row_HW, column_HW], "i h w -> (h w) i").float()


def draw_sigma(batch: int) -> Tensor:
    """Logit-normal sigma, (B,) in 0..1. One draw from each B-th of the distribution: less noise in the gradient."""
    share_B = (torch.arange(batch) + torch.rand(batch)) / batch
    return torch.sigmoid(SIGMA_MEAN + torch.special.ndtri(share_B.clamp(1e-4, 1 - 1e-4)))


def to_model_space(latents_BCHW: Tensor, vae: AutoencoderKL) -> Tensor:
    """Shift and scale the VAE's latents to the mean 0 and deviation 1 that the transformer works in."""
    shifted_BCHW: Tensor = (latents_BCHW - vae.config.shift_factor) * vae.config.scaling_factor
    return shifted_BCHW
