"""Flow matching as FLUX.1 was trained: sigma runs from 0 at the image to 1 at pure noise.

    noisy  = (1 - sigma) * clean + sigma * noise
    target = noise - clean                          the velocity along that straight path
    loss   = |model(noisy, sigma) - target|^2       or what `losses.py` makes of that error

Descriptions that write `t * clean + (1 - t) * noise` with target `clean - noise` run the other way: t = 1 - sigma, and
the target changes sign. The loss is the same; but the pretrained weights expect sigma, so sigma it is here.

Source: Lipman et al. 2023 (arXiv 2210.02747). How sigma is drawn: `sigmas.py`.

Legend: B batch, C latent channels (16), H/W latent height and width, S text tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import FluxTransformer2DModel
from einops import rearrange
from torch import Tensor

from services.trainer.config import TrainConfig
from services.trainer.losses import loss_of_error
from services.trainer.packing import image_ids, pack, text_ids, unpack


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What the model sees at once: clean latents in model space, noise, noise levels, the captions' embeddings.

    `mask_B1HW` (0 to 1) says how much of each place counts in the loss, None means all of it; `guidance_B` is what the
    model is told of guidance, None means nothing.
    """

    clean_BCHW: Tensor
    noise_BCHW: Tensor
    sigma_B: Tensor
    t5_BSD: Tensor
    clip_BD: Tensor
    mask_B1HW: Tensor | None = None
    guidance_B: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        there = {
            name: tensor.to(device, non_blocking=True) for name, tensor in vars(self).items() if tensor is not None
        }
        return Batch(**there)


def loss_per_sample(transformer: FluxTransformer2DModel, batch: Batch, config: TrainConfig) -> Tensor:
    """Loss of the predicted velocity, (B,) float32, as the configuration wants it.

    The noise is mixed with the level that the transformer will be told, not with the one drawn: see `told_sigma`.
    """
    dtype = next(transformer.parameters()).dtype  # the property looks through every module, for milliseconds
    sigma_B = batch.sigma_B.to(dtype)
    told_B = told_sigma(sigma_B)
    noisy_BCHW = interpolate(batch.clean_BCHW, batch.noise_BCHW, told_B).to(dtype)
    with torch.autocast(noisy_BCHW.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        velocity_BCHW = predict_velocity(
            transformer, noisy_BCHW, sigma_B, batch.t5_BSD, batch.clip_BD, batch.guidance_B
        )
    error_BCHW = velocity_BCHW.float() - velocity_target(batch.clean_BCHW, batch.noise_BCHW)
    return loss_of_error(error_BCHW, told_B, batch.mask_B1HW, config)


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
    transformer: FluxTransformer2DModel,
    noisy_BCHW: Tensor,
    sigma_B: Tensor,
    t5_BSD: Tensor,
    clip_BD: Tensor,
    guidance_B: Tensor | None = None,
) -> Tensor:
    """Run the transformer on unpacked latents. It multiplies sigma and guidance scales by 1000 itself."""
    height, width = noisy_BCHW.shape[-2:]
    (velocity_BLP,) = transformer(
        hidden_states=pack(noisy_BCHW),
        timestep=sigma_B,
        guidance=guidance_B,  # None bypasses its embedding: see transformer.GuidanceBypass
        encoder_hidden_states=t5_BSD.to(noisy_BCHW.dtype),
        pooled_projections=clip_BD.to(noisy_BCHW.dtype),
        txt_ids=text_ids(t5_BSD.shape[1], noisy_BCHW.device),
        img_ids=image_ids(height, width, noisy_BCHW.device),
        return_dict=False,
    )
    return unpack(velocity_BLP, height, width)
