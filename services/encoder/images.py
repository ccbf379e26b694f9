"""From the bytes of an image file to the pixels the VAE sees: decode, turn upright, scale and crop to a bucket.

Legend: H/W picture height and width in px, C colour channels.
"""

from __future__ import annotations

import hashlib
import io
import math
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

BUCKET_STEP_PX = 16  # 8 of the VAE times 2 of the packing
RESIZE_KERNEL = Image.Resampling.LANCZOS
Image.MAX_IMAGE_PIXELS = None  # `decode` has a limit of its own, and says so in its own words
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")


class Problem(Enum):
    """Kinds of problem with a sample; the names are those of the contract's SampleProblemReason."""

    NOT_AN_IMAGE = "NOT_AN_IMAGE"
    TRUNCATED = "TRUNCATED"
    TOO_LARGE = "TOO_LARGE"
    TOO_SMALL = "TOO_SMALL"
    CAPTION_EMPTY = "CAPTION_EMPTY"
    CAPTION_TOO_LONG = "CAPTION_TOO_LONG"
    DUPLICATE = "DUPLICATE"
    CAPTION_TRUNCATED = "CAPTION_TRUNCATED"


class BadSample(Exception):
    """One sample cannot be used: which kind of problem, and the remedy in the message."""

    def __init__(self, problem: Problem, message: str) -> None:
        super().__init__(message)
        self.problem = problem
        self.message = message


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Size in px that an image is cropped to."""

    height_px: int
    width_px: int


def decode(data: bytes, *, max_pixels: int) -> Image.Image:
    """Decode an image file upright as RGB, transparency composited on white. Raises `BadSample`."""
    try:
        image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise BadSample(
            Problem.NOT_AN_IMAGE, f"not an image of a known format; use one of {', '.join(IMAGE_FORMATS)}"
        ) from error
    if image.mode in {"I", "F"}:
        raise BadSample(Problem.NOT_AN_IMAGE, "its pixels have 32 bits, of which no range is agreed; export 8 or 16")
    if image.width * image.height > max_pixels:
        raise BadSample(
            Problem.TOO_LARGE,
            f"{image.width} x {image.height} px is over the limit of {max_pixels} px; scale it down",
        )
    try:
        image.load()
        rgba = ImageOps.exif_transpose(_as_8_bit(image)).convert("RGBA")
    except Exception as error:  # a decoder may raise anything on damaged bytes, and all of it means the same
        raise BadSample(Problem.TRUNCATED, f"the image is damaged ({error}); export it again") from error
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")


def _as_8_bit(image: Image.Image) -> Image.Image:
    """Greyscale of 16 bits scaled to 8; Pillow's own conversion would clip all but the darkest to white."""
    if not image.mode.startswith("I"):
        return image
    scaled = Image.fromarray(np.clip(np.asarray(image) // 256, 0, 255).astype(np.uint8))
    scaled.info, exif = dict(image.info), image.getexif()
    if exif:
        scaled.info["exif"] = exif.tobytes()
    return scaled


def pixel_digest(image: Image.Image) -> str:
    """sha256 over size and pixels, in hexadecimal: the same picture in another file format has the same digest."""
    header = f"RGB {image.width}x{image.height} ".encode()
    return hashlib.sha256(header + image.tobytes()).hexdigest()


def choose_bucket(width_px: int, height_px: int, *, resolution_px: int) -> Bucket:
    """The size to crop to: the image's aspect ratio, at most `resolution_px` squared pixels, never scaled up.

    Sides are multiples of 16 px. Raises `BadSample` when a side would be under 16 px.
    """
    scale = min(1.0, resolution_px / math.sqrt(width_px * height_px))
    width, height = (
        BUCKET_STEP_PX * max(0, round_down(side * scale / BUCKET_STEP_PX)) for side in (width_px, height_px)
    )
    if not width or not height:
        raise BadSample(
            Problem.TOO_SMALL,
            f"{width_px} x {height_px} px leaves a side under {BUCKET_STEP_PX} px at resolution {resolution_px}; "
            "use a larger or less elongated image",
        )
    return Bucket(height_px=height, width_px=width)


def round_down(sides: float) -> int:
    """Floor that forgives rounding errors: 3.9999999 multiples are four."""
    return math.floor(sides + 1e-6)


def crop_to(image: Image.Image, bucket: Bucket) -> NDArray[np.float32]:
    """Scale to cover the bucket and crop at the centre: (3, H, W), float32 in -1..1."""
    size = (bucket.width_px, bucket.height_px)
    fitted = image if image.size == size else ImageOps.fit(image, size, RESIZE_KERNEL)
    pixels_HWC = np.asarray(fitted, dtype=np.float32) / 127.5 - 1
    return np.ascontiguousarray(pixels_HWC.transpose(2, 0, 1))
