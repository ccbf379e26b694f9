"""Flow matching as FLUX.1 was trained: sigma runs from 0 at the image to 1 at pure noise.

    noisy  = (1 - sigma) * clean + sigma * noise
    target = noise - clean                          the velocity along that straight path
    loss   = |model(noisy, sigma) - target|^2

Descriptions that write `t * clean + (1 - t) * noise` with target `clean - noise` run the other way: t = 1 - sigma, and
the target changes sign. The loss is the same; but the pretrained weights expect sigma, so sigma it is here.

Source: Lipman et al. 2023 (arXiv 2210.02747); Esser et al. 2024 (arXiv 2403.03206) for the sampling of sigma; the
resolution shift as in the reference code of FLUX.1.

Legend: B batch, C latent channels (16), H/W latent height and width, S text tokens, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from diffusers import FluxTransformer2DModel
from einops import rearrange
from torch import Tensor

from services.trainer.choices import SigmaSampling
from services.trainer.packing import image_ids, pack, text_ids, unpack


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one step sees: clean latents in model space, noise, noise levels and the captions' embeddings."""

    clean_BCHW: Tensor
    noise_BCHW: Tensor
    sigma_B: Tensor
    t5_BSD: Tensor
    clip_BD: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        return Batch(**{name: tensor.to(device, non_blocking=True) for name, tensor in vars(self).items()})


def loss_per_sample(transformer: FluxTransformer2DModel, batch: Batch) -> Tensor:
    """Mean squared error of the predicted velocity, (B,) float32.

    The noise is mixed with the level that the transformer will be told, not with the one drawn: see `told_sigma`.
    """
    dtype = transformer.dtype
    sigma_B = batch.sigma_B.to(dtype)
    noisy_BCHW = interpolate(batch.clean_BCHW, batch.noise_BCHW, told_sigma(sigma_B))
    with torch.autocast(noisy_BCHW.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        velocity_BCHW = predict_velocity(transformer, noisy_BCHW.to(dtype), sigma_B, batch.t5_BSD, batch.clip_BD)
    error_BCHW = velocity_BCHW.float() - velocity_target(batch.clean_BCHW, batch.noise_BCHW)
    return error_BCHW.square().mean(dim=(1, 2, 3))


def told_sigma(sigma_B: Tensor) -> Tensor:
    """The noise level that reaches the transformer's embedding, float32, given sigma in the transformer's dtype.

    diffusers multiplies by 1000 in that dtype: in bf16 a second rounding, and together steps of 0.004 near 1.
    """
    return (sigma_B * 1000).float() / 1000


def interpolate(clean_BCHW: Tensor, noise_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
    """The point at `sigma` on the straight path from the image (0) to noise (1)."""
    sigma_B111 = rearrange(sigma_B, "b -> b 1 1 1")
    return (1 - sigma_B111) * clean_BCHW + sigma_B111 * noise_BCHW


def velocity_target(clean_BCHW: Tensor, noise_BCHW: Tensor) -> Tensor:
    """Derivative of `interpolate` with respect to sigma."""
    return noise_BCHW - clean_BCHW


def predict_velocity(
    transformer: FluxTransformer2DModel, noisy_BCHW: Tensor, sigma_B: Tensor, t5_BSD: Tensor, clip_BD: Tensor
) -> Tensor:
    """Run the transformer on unpacked latents. It multiplies the timestep by 1000 itself, so it is given sigma."""
    height, width = noisy_BCHW.shape[-2:]
    (velocity_BLP,) = transformer(
        hidden_states=pack(noisy_BCHW),
        timestep=sigma_B,
        guidance=None,  # bypassed: see transformer.bypass_guidance
        encoder_hidden_states=t5_BSD.to(noisy_BCHW.dtype),
        pooled_projections=clip_BD.to(noisy_BCHW.dtype),
        txt_ids=text_ids(t5_BSD.shape[1], noisy_BCHW.device),
        img_ids=image_ids(height, width, noisy_BCHW.device),
        return_dict=False,
    )
    return unpack(velocity_BLP, height, width)


def draw_sigma(sampling: SigmaSampling, image_tokens: int, generator: torch.Generator) -> float:
    """Draw one noise level in (0, 1] for an image of so many packed tokens."""
    match sampling:
        case SigmaSampling.UNIFORM:
            return (int(torch.randint(1000, (), generator=generator)) + 1) / 1000
        case SigmaSampling.LOGIT_NORMAL:
            return _sigmoid(float(torch.randn((), generator=generator)))
        case SigmaSampling.RESOLUTION_SHIFT:
            return shift(_sigmoid(float(torch.randn((), generator=generator))), resolution_mu(image_tokens))


def shift(sigma: float, mu: float) -> float:
    """Move a noise level towards noise by `mu`, as FLUX's scheduler does when it samples."""
    return math.exp(mu) / (math.exp(mu) + 1 / sigma - 1)


def resolution_mu(image_tokens: int) -> float:
    """The shift for an image of so many packed tokens: 0.5 at 256, 1.15 at 4096, linear between and beyond."""
    return 0.5 + (1.15 - 0.5) * (image_tokens - 256) / (4096 - 256)


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))
