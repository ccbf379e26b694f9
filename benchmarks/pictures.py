"""Captioned images as people bring them: photograph-like files larger than what is trained on, every one another."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

OCTAVES_PX = (180, 45, 12, 3)  # sizes of the blobs that a picture is made of, from sky to grain
CAPTION_WORDS = 15
# fmt: off
WORDS = (
    "photo", "drawing", "small", "large", "old", "red", "green", "blue", "golden", "dark", "bright", "wooden", "paper",
    "glass", "bridge", "house", "garden", "river", "mountain", "cat", "dog", "horse", "bird", "fish", "apple", "flower",
    "tree", "leaf", "boat", "train", "window", "door", "table", "chair", "cup", "book", "lamp", "clock", "with", "on",
    "under", "beside", "near", "morning", "light", "shadow", "sleeping", "quiet", "round", "soft", "cloud", "snow",
)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class CaptionedFile:
    """An image file and its caption."""

    path: Path
    caption: str


def captioned_files(
    folder: Path, count: int, *, width_px: int, height_px: int, png_every: int = 4, seed: int = 0
) -> list[CaptionedFile]:
    """Write image files into a folder: JPEG in quality 90, but every fourth (`png_every`) a PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, caption in zip(range(count), unique_captions(seed), strict=False):
        kind = "png" if png_every and number % png_every == png_every - 1 else "jpeg"
        path = folder / f"{number:05}.{kind}"
        path.write_bytes(picture_file(seed * 1_000_003 + number, kind, width_px=width_px, height_px=height_px))
        files.append(CaptionedFile(path=path, caption=caption))
    return files


def picture_file(seed: int, kind: str, *, width_px: int, height_px: int) -> bytes:
    """One image file (`jpeg` or `png`): smooth noise of several sizes, a different one for each seed."""
    random = np.random.default_rng(seed)
    total_HWC = np.zeros((height_px, width_px, 3), dtype=np.float32)
    for blob_px in OCTAVES_PX:
        grid = (max(2, height_px // blob_px), max(2, width_px // blob_px), 3)
        coarse = Image.fromarray(random.integers(0, 256, grid, dtype=np.uint8))
        octave = coarse.resize((width_px, height_px), Image.Resampling.BICUBIC)
        total_HWC += np.asarray(octave, dtype=np.float32) * (blob_px / sum(OCTAVES_PX))
    buffer = io.BytesIO()
    Image.fromarray(total_HWC.clip(0, 255).astype(np.uint8)).save(buffer, kind, quality=90)
    return buffer.getvalue()


def unique_captions(seed: int = 0) -> Iterator[str]:
    """Captions of fifteen words without end, each one another."""
    random = np.random.default_rng(seed)
    number = 0
    while True:
        number += 1
        yield " ".join([*random.choice(WORDS, CAPTION_WORDS - 1), str(number)])
