"""Train flux-tiny's VAE: diffusers' AutoencoderKL in FLUX's shape (factor 8, 16 latent channels), 64 px pictures.

    python -m tools.flux_tiny.vae --google DIR --out DIR --steps 5000

Legend: B batch, C channels, H/W picture height and width in px, h/w latent height and width.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from tools.flux_tiny.data import Emoji, load_rgba, on_white, read_emoji

KL_WEIGHT = 1e-4
VARIANT_WEIGHT = 0.3  # five skin tones of one drawing would otherwise be a third of every batch


def train_vae(pictures_NCHW: Tensor, weights_N: Tensor, *, steps: int, batch: int, peak_lr: float) -> AutoencoderKL:
    """Fit reconstruction with a light KL term. `pictures_NCHW` float32 in -1..1, `weights_N` sampling weights."""
    vae = new_vae()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=peak_lr, weight_decay=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak_lr, total_steps=steps, pct_start=0.05)
    started = time.monotonic()
    for step in range(1, steps + 1):
        picture_BCHW = vary(pictures_NCHW[torch.multinomial(weights_N, batch)])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            posterior = vae.encode(picture_BCHW).latent_dist
            decoded_BCHW = vae.decode(posterior.sample()).sample
        loss = reconstruction_loss(decoded_BCHW.float(), picture_BCHW) + KL_WEIGHT * posterior.kl().mean() / 64
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step} loss {loss.item():.4f} {(time.monotonic() - started) / step:.3f} s/step", flush=True)
    return vae.eval()


def new_vae() -> AutoencoderKL:
    """FLUX's VAE layout (no quant convolutions) at a thirtieth of its size."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(24, 48, 96, 128),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=64,
    )


def vary(picture_BCHW: Tensor) -> Tensor:
    """Mirror, recolour, turn into line drawings: a codec has to carry styles that its data does not show."""
    chance_B = torch.rand(len(picture_BCHW))
    varied_BCHW = torch.where(
        (torch.rand(len(picture_BCHW)) < 0.5)[:, None, None, None], picture_BCHW.flip(-1), picture_BCHW
    )
    shuffled_BCHW = varied_BCHW[:, torch.randperm(3)]
    ink_B1HW = ink_lines(varied_BCHW)
    varied_BCHW = torch.where((chance_B < 0.15)[:, None, None, None], shuffled_BCHW, varied_BCHW)
    return torch.where((chance_B > 0.9)[:, None, None, None], ink_B1HW.expand_as(varied_BCHW), varied_BCHW)


def ink_lines(picture_BCHW: Tensor) -> Tensor:
    """Dark lines on white where the picture changes: (B, 1, H, W) in -1..1."""
    padded_BCHW = F.pad(picture_BCHW, (1, 1, 1, 1), mode="replicate")
    across_BCHW = padded_BCHW[..., 1:-1, 2:] - padded_BCHW[..., 1:-1, :-2]
    down_BCHW = padded_BCHW[..., 2:, 1:-1] - padded_BCHW[..., :-2, 1:-1]
    change_B1HW = (across_BCHW.square() + down_BCHW.square()).sum(1, keepdim=True).sqrt()
    return 1 - 2 * (change_B1HW * 1.5).clamp(0, 1)


def reconstruction_loss(decoded_BCHW: Tensor, picture_BCHW: Tensor) -> Tensor:
    """L1 + L2 on the pixels and L1 on their differences, which keeps edges sharp."""
    error_BCHW = decoded_BCHW - picture_BCHW
    edges = error_BCHW.diff(dim=-1).abs().mean() + error_BCHW.diff(dim=-2).abs().mean()
    return error_BCHW.abs().mean() + error_BCHW.square().mean() + edges


@torch.no_grad()
def psnr_db(vae: AutoencoderKL, pictures_NCHW: Tensor) -> float:
    """Mean over pictures of the peak signal-to-noise ratio of encode (mean) and decode, in dB."""
    values: list[Tensor] = []
    for picture_BCHW in pictures_NCHW.split(32):
        decoded_BCHW = vae.decode(vae.encode(picture_BCHW).latent_dist.mean).sample.clamp(-1, 1)
        values.append(10 * torch.log10(4 / (decoded_BCHW - picture_BCHW).square().mean(dim=(1, 2, 3))))
    return torch.cat(values).mean().item()


@torch.no_grad()
def encode_all(vae: AutoencoderKL, pictures_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the posteriors, each (N, 16, h, w) float32, shift and scale not applied."""
    posteriors = [vae.encode(part).latent_dist for part in pictures_NCHW.split(32)]
    return torch.cat([p.mean for p in posteriors]), torch.cat([p.std for p in posteriors])


def set_latent_scale(vae: AutoencoderKL, mean_NChw: Tensor) -> None:
    """Write `shift_factor` and `scaling_factor` that give model-space latents mean 0 and deviation 1."""
    vae.register_to_config(
        shift_factor=round(mean_NChw.mean().item(), 4), scaling_factor=round(1 / mean_NChw.std().item(), 4)
    )


def as_tensor(emoji: list[Emoji]) -> Tensor:
    return torch.from_numpy(on_white(load_rgba(emoji)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--google", type=Path, required=True, help="unpacked emoji-datasource-google package")
    parser.add_argument("--out", type=Path, required=True, help="folder for the VAE")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--peak-lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    emoji = read_emoji(arguments.google, "google")
    learned = [e for e in emoji if not e.held_out]
    unseen = as_tensor([e for e in emoji if e.held_out])
    weights_N = torch.from_numpy(np.array([VARIANT_WEIGHT if e.is_variant else 1.0 for e in learned]))
    pictures_NCHW = as_tensor(learned)
    print(f"{len(learned)} drawings to learn from, {len(unseen)} held out", flush=True)
    vae = train_vae(pictures_NCHW, weights_N, steps=arguments.steps, batch=arguments.batch, peak_lr=arguments.peak_lr)
    set_latent_scale(vae, encode_all(vae, pictures_NCHW)[0])
    vae = vae.to(torch.bfloat16)  # as FLUX.1-dev's weights are stored; measured after the rounding
    vae.save_pretrained(arguments.out / "vae")
    report = {"vae_steps": arguments.steps, "vae_psnr_db_held_out": round(psnr_db(vae.float(), unseen), 2)}
    (arguments.out / "vae_report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(report, flush=True)


if __name__ == "__main__":
    main()
