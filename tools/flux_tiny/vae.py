"""Train flux-tiny's VAE from nothing: diffusers' AutoencoderKL in FLUX's shape (factor 8, 16 latent channels).

Most steps see crops of 32 px, which cost a quarter; the last ones whole pictures of 64 and some of 128 px.

Legend: B batch, C channels, H/W picture height and width in px, h/w latent height and width.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from tools.flux_tiny.learner import Learner
from tools.flux_tiny.scenes import Album

KL_WEIGHT = 1e-4
CROP_SHARE = 0.62
CROP_PX = 32


def new_vae() -> AutoencoderKL:
    """FLUX's VAE layout (no quant convolutions) at a thirtieth of its size."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 48, 96, 128),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=64,
    )


def train_vae(album: Album, snapshot: Path, *, steps: int, lr: float = 3e-3) -> AutoencoderKL:
    """Fit reconstruction with a light KL term, set shift and scale, and return the VAE in bfloat16."""
    learner = Learner(new_vae(), snapshot, steps=steps, lr=lr, first=("conv_in", "decoder.conv_out"))
    while learner.done < 1:
        picture_BCHW = draw_batch(album, learner.done)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            posterior = learner.module.encode(picture_BCHW).latent_dist
            decoded_BCHW = learner.module.decode(posterior.sample()).sample
        places = picture_BCHW[0, 0].numel() / 64
        kl = KL_WEIGHT * posterior.kl().mean() / places
        learner.update(reconstruction_loss(decoded_BCHW.float(), picture_BCHW) + kl)
    vae = learner.averaged.eval()
    set_latent_scale(vae, album)
    return vae.to(torch.bfloat16)  # as FLUX.1-dev's weights are stored


def draw_batch(album: Album, done: float) -> Tensor:
    """(B, C, H, W) float32 in -1..1; sets and styles differ within a batch."""
    if done >= CROP_SHARE and random.random() < 0.06:
        return draw_pictures(album, 4, side=128, alike=2)
    if done >= CROP_SHARE:
        return draw_pictures(album, 16, side=64, alike=4)
    picture_BCHW = draw_pictures(album, 32, side=64, alike=4)
    top, left = random.choice([0, 16, 32]), random.choice([0, 16, 32])
    return picture_BCHW[..., top : top + CROP_PX, left : left + CROP_PX]


def draw_pictures(album: Album, count: int, *, side: int, alike: int) -> Tensor:
    scenes = [scene for _ in range(count // alike) for scene in album.scenes(alike, side, side)]
    return torch.stack([scene.picture for scene in scenes]) * 2 - 1


def reconstruction_loss(decoded_BCHW: Tensor, picture_BCHW: Tensor) -> Tensor:
    """L1 + L2 on the pixels and L1 on their differences, which keeps edges sharp."""
    error_BCHW = decoded_BCHW - picture_BCHW
    edges = error_BCHW.diff(dim=-1).abs().mean() + error_BCHW.diff(dim=-2).abs().mean()
    return error_BCHW.abs().mean() + error_BCHW.square().mean() + edges


@torch.no_grad()
def psnr_db(vae: AutoencoderKL, pictures_NCHW: Tensor) -> float:
    """Mean over pictures (-1..1) of the peak signal-to-noise ratio of encode (mean) and decode, in dB."""
    values: list[Tensor] = []
    for picture_BCHW in pictures_NCHW.split(32):
        decoded_BCHW = vae.decode(vae.encode(picture_BCHW).latent_dist.mean).sample.clamp(-1, 1)
        error_B = (decoded_BCHW - picture_BCHW).square().mean(dim=(1, 2, 3))
        values.append(10 * torch.log10(4 / error_B.clamp(min=1e-5)))
    return torch.cat(values).mean().item()


@torch.no_grad()
def set_latent_scale(vae: AutoencoderKL, album: Album) -> None:
    """Write `shift_factor` and `scaling_factor` that give model-space latents mean 0 and deviation 1."""
    pictures_NCHW = draw_pictures(album, 768, side=64, alike=4)
    mean_NChw = torch.cat([vae.encode(part).latent_dist.mean for part in pictures_NCHW.split(32)])
    vae.register_to_config(
        shift_factor=round(mean_NChw.mean().item(), 4), scaling_factor=round(1 / mean_NChw.std().item(), 4)
    )
