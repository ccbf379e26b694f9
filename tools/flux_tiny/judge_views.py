"""Views of the judge's pictures: clean ones, moved and tinted a little, and corrupted ones, which show what failure is.

Legend: B batch, C color channels, H/W height and width in px, P pixels.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tools.flux_tiny.styles import blur


def clean_view(picture_BCHW: Tensor, turns_B: Tensor) -> Tensor:
    """Crop, flip where `turns_B` allows it, jitter colors, and for a few add faint noise or softness."""
    x_BCHW = jitter(move(picture_BCHW, turns_B))
    few, some = len(x_BCHW) // 6, len(x_BCHW) // 3
    softer = torch.randperm(len(x_BCHW))[:few]
    x_BCHW[softer] = blur(x_BCHW[softer], random.uniform(0.3, 0.8))
    grainy = torch.randperm(len(x_BCHW))[:some]
    x_BCHW[grainy] += 0.04 * torch.rand(some, 1, 1, 1) * torch.randn(some, *x_BCHW.shape[1:])
    return x_BCHW.clamp_(0, 1)


def move(picture_BCHW: Tensor, turns_B: Tensor) -> Tensor:
    """Zoom by 0.8 to 1.15, shift by up to an eighth, turn by up to 9 degrees; the border goes on outward."""
    count = len(picture_BCHW)
    flip_B = torch.where(turns_B & (torch.rand(count) < 0.5), -1.0, 1.0)
    angle_B, zoom_B = (torch.rand(count) - 0.5) * 0.32, torch.empty(count).uniform_(0.85, 1.2)
    across_B, down_B = torch.empty(2, count).uniform_(-0.12, 0.12)
    wide_B = torch.empty(count).uniform_(0.92, 1.08)
    cos_B, sin_B = torch.cos(angle_B) * zoom_B, torch.sin(angle_B) * zoom_B
    rows = (cos_B * flip_B * wide_B, -sin_B, across_B, sin_B * flip_B * wide_B, cos_B, down_B)
    theta_B23 = torch.stack(rows, -1).view(count, 2, 3)
    where = F.affine_grid(theta_B23, list(picture_BCHW.shape), align_corners=False)
    return F.grid_sample(picture_BCHW, where, padding_mode="border", align_corners=False)


def jitter(x_BCHW: Tensor) -> Tensor:
    """Brightness, contrast, saturation and a little hue; a tenth goes through a hard tone curve."""
    count = len(x_BCHW)
    hue_B33 = torch.eye(3) + 0.06 * torch.randn(count, 3, 3)
    gray_33 = torch.tensor([0.3, 0.59, 0.11]).expand(3, 3)
    saturation_B33 = torch.lerp(gray_33, torch.eye(3), torch.empty(count, 1, 1).uniform_(0.5, 1.3))
    spread_B11 = torch.where(torch.rand(count, 1, 1) < 0.1, 2.5, torch.empty(count, 1, 1).uniform_(0.75, 1.25))
    middle_B11 = torch.empty(count, 1, 1).uniform_(0.4, 0.6)
    shift_B11 = middle_B11 * (1 - spread_B11) + 0.08 * torch.randn(count, 1, 1)
    # One product for all of it: each pass over the pixels costs as much as a layer.
    x_BCP = torch.baddbmm(shift_B11, saturation_B33 @ hue_B33 * spread_B11, x_BCHW.flatten(2))
    return x_BCP.view_as(x_BCHW).clamp_(0, 1)


def out_of_focus(x_BCHW: Tensor) -> Tensor:
    return blur(x_BCHW, random.uniform(1.8, 4.5))


def noisy(x_BCHW: Tensor) -> Tensor:
    return (x_BCHW + random.uniform(0.15, 0.5) * torch.randn_like(x_BCHW)).clamp(0, 1)


def squeezed(x_BCHW: Tensor) -> Tensor:
    """JPEG of the lowest qualities."""
    return torch.stack([jpeg(picture, random.randint(1, 5)) for picture in x_BCHW])


def jpeg(picture_CHW: Tensor, quality: int) -> Tensor:
    packed = io.BytesIO()
    pixels = (picture_CHW.permute(1, 2, 0) * 255).round().byte().numpy()
    Image.fromarray(pixels).save(packed, "JPEG", quality=quality)
    return torch.from_numpy(np.asarray(Image.open(packed)).copy()).permute(2, 0, 1).float() / 255


def shuffled(x_BCHW: Tensor) -> Tensor:
    """The same square tiles in another order; those of a picture of one color are no corruption, and rare."""
    side = random.choice([8, 16, 16])
    count, channels, height, width = x_BCHW.shape
    tiles = F.unfold(x_BCHW, side, stride=side)
    moved = torch.stack([tile[:, torch.randperm(tiles.shape[-1])] for tile in tiles])
    return F.fold(moved, (height, width), side, stride=side).view(count, channels, height, width)


def patchy(x_BCHW: Tensor) -> Tensor:
    """The picture fades in and out under smooth blotches of color, as a model that has lost its way draws it."""
    blotches = F.interpolate(torch.rand(*x_BCHW.shape[:2], 6, 6), x_BCHW.shape[-2:], mode="bicubic").clamp(0, 1)
    share = F.interpolate(torch.rand(len(x_BCHW), 1, 5, 5), x_BCHW.shape[-2:], mode="bicubic").clamp(0, 1)
    soft = blur(x_BCHW, 1.5)
    return torch.lerp(soft, blotches, (share * math.sqrt(2)).clamp(0.3, 0.95))


CORRUPTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "blur": out_of_focus, "noise": noisy, "jpeg": squeezed, "shuffle": shuffled, "blotches": patchy,
}  # fmt: skip


def corrupt(clean_BCHW: Tensor, mush_BCHW: Tensor) -> Tensor:
    """Corrupt a batch, each sixth of it in another way; the last sixth is mush of the VAE instead, (B / 6, C, H, W)."""
    parts = clean_BCHW.chunk(len(CORRUPTIONS) + 1)
    done = [spoil(part) for spoil, part in zip(CORRUPTIONS.values(), parts, strict=False)]
    return torch.cat([*done, mush_BCHW])[: len(clean_BCHW)]
