"""From an upright picture to what the VAE sees: the bucket it goes to, the window that is cut, pixels in -1..1.

Legend: H/W picture height and width in px, h/w latent height and width, C colour channels.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from services.encoder.problems import BadSample, Problem

BUCKET_STEP_PX = 16  # 8 of the VAE times 2 of the packing
LATENT_PX = 8  # px of the picture to a side of a latent pixel
RESIZE_KERNEL = Image.Resampling.LANCZOS


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Size in px that an image is cropped to."""

    height_px: int
    width_px: int


@dataclass(frozen=True, kw_only=True)
class Crop:
    """Which window of the scaled picture is cut."""

    x: float = 0.5
    """0 is the left end of where the window can be, 1 the right end."""

    y: float = 0.5
    """0 is the top end, 1 the bottom end."""

    mirrored: bool = False
    """Left and right are exchanged after cutting: the same window, seen in a mirror."""


def choose_bucket(
    width_px: int, height_px: int, *, resolution_px: int, step_px: int = BUCKET_STEP_PX, upscale: bool = False
) -> Bucket:
    """The size to crop to: the picture's aspect ratio as nearly as sides that are multiples of `step_px` allow.

    Its area is at most `resolution_px` squared. The picture is scaled down to cover it, and never up unless `upscale`,
    which makes up for what a small picture lacks. `step_px` is a multiple of 16. Raises `BadSample` if nothing fits.
    """
    scale = resolution_px / math.sqrt(width_px * height_px)
    if not upscale:
        scale = min(1.0, scale)
    widths, heights = (_steps_around(side * scale, step_px) for side in (width_px, height_px))
    fitting = [
        (width, height)
        for width, height in itertools.product(widths, heights)
        if 0 < width * height <= resolution_px**2 and (upscale or (width <= width_px and height <= height_px))
    ]
    if not fitting:
        helps = not upscale and _fits_enlarged(width_px, height_px, resolution_px, step_px)
        raise BadSample(
            Problem.TOO_SMALL,
            f"{width_px} x {height_px} px leaves a side under {step_px} px at resolution {resolution_px}; "
            f"use a larger or less elongated image{', or ask for upscaling' if helps else ''}",
        )
    width, height = max(fitting, key=lambda size: share_kept(width_px, height_px, *size))
    return Bucket(height_px=height, width_px=width)


def _fits_enlarged(width_px: int, height_px: int, resolution_px: int, step_px: int) -> bool:
    try:
        return bool(choose_bucket(width_px, height_px, resolution_px=resolution_px, step_px=step_px, upscale=True))
    except BadSample:
        return False


def share_kept(width_px: int, height_px: int, bucket_width_px: int, bucket_height_px: int) -> Fraction:
    """The share of the picture that is left when it is scaled to cover a bucket and cut; exact on every machine."""
    across, down = width_px * bucket_height_px, height_px * bucket_width_px
    return Fraction(min(across, down), max(across, down))


def _steps_around(side_px: float, step_px: int) -> tuple[int, int]:
    """The multiples below and above; a side that only rounding errors keep from a multiple finds it above."""
    below = math.floor(side_px / step_px)
    return step_px * below, step_px * (below + 1)


def random_crops(count: int, *, seed: int, digest: str) -> tuple[Crop, ...]:
    """Windows anywhere, evenly. The n-th is a function of the seed, the picture's digest and n alone."""
    return tuple(_random_crop(f"{seed} {digest} {number}") for number in range(count))


def _random_crop(key: str) -> Crop:
    """Drawn from a hash, which is the same on every machine and in every version of every library."""
    drawn = hashlib.sha256(key.encode()).digest()
    x, y = (int.from_bytes(part) / 2**48 for part in (drawn[:6], drawn[6:12]))
    return Crop(x=x, y=y)


def crop_to(image: Image.Image, bucket: Bucket, crop: Crop = Crop()) -> Image.Image:
    """Scale to cover the bucket, cut the window, mirror it if asked."""
    return _cut(image, (bucket.width_px, bucket.height_px), crop, RESIZE_KERNEL)


def pixels(image: Image.Image) -> NDArray[np.float32]:
    """The picture as the VAE takes it: (3, H, W), float32 in -1..1; to the bit what VaeImageProcessor gives."""
    pixels_HWC = np.asarray(image, dtype=np.float32) / 127.5 - 1
    return np.ascontiguousarray(pixels_HWC.transpose(2, 0, 1))


def loss_mask(alpha: Image.Image, bucket: Bucket, crop: Crop = Crop()) -> NDArray[np.float32]:
    """How much of each latent pixel's area is opaque: (1, h, w), float32 in 0..1, for the same window as `crop_to`."""
    size = (bucket.width_px // LATENT_PX, bucket.height_px // LATENT_PX)
    opaque_hw = np.asarray(_cut(alpha, size, crop, Image.Resampling.BOX), dtype=np.float32)
    return opaque_hw[np.newaxis] / np.float32(255)


def _cut(image: Image.Image, size: tuple[int, int], crop: Crop, kernel: Image.Resampling) -> Image.Image:
    window = ImageOps.fit(image, size, kernel, centering=(crop.x, crop.y))
    return ImageOps.mirror(window) if crop.mirrored else window
