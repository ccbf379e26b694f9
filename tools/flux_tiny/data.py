"""The pictures and captions that flux-tiny learns from: emoji drawings and their names.

Source: the npm packages `emoji-datasource-google` and `emoji-datasource-twitter` (64 px PNGs with alpha and an
`emoji.json`), unpacked by `fetch_emoji.sh` into one folder per vendor.

Legend: N pictures, H/W height and width in px, C colour channels.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE_PX = 64
HELD_OUT_ONE_IN = 20


@dataclass(frozen=True, kw_only=True)
class Emoji:
    """One drawing. `captions` are lower-case names, the official one first; `is_variant` marks a skin tone."""

    key: str
    captions: tuple[str, ...]
    category: str
    path: Path
    is_variant: bool
    held_out: bool


def read_emoji(package: Path, vendor: str) -> list[Emoji]:
    """List a vendor's drawings, in the order of `emoji.json`.

    A skin tone belongs to the same side of the split as the drawing it varies, so nothing leaks into the held-out part.
    """
    found: list[Emoji] = []
    for entry in json.loads((package / "emoji.json").read_text(encoding="utf-8")):
        if not entry[f"has_img_{vendor}"]:
            continue
        digest = hashlib.sha256(entry["unified"].encode()).digest()
        shared = {"category": entry["category"], "held_out": int.from_bytes(digest[:4], "big") % HELD_OUT_ONE_IN == 0}
        names = (entry["name"], *entry["short_names"])
        images = package / "img" / vendor / "64"
        captions = tuple(dict.fromkeys(map(_plain, names)))
        found.append(
            Emoji(key=entry["unified"], captions=captions, path=images / entry["image"], is_variant=False, **shared)
        )
        for tone, variant in entry.get("skin_variations", {}).items():
            if variant[f"has_img_{vendor}"] and "-" not in tone:
                caption = f"{captions[0]}, {_TONES[tone]} skin"
                path = images / variant["image"]
                found.append(Emoji(key=variant["unified"], captions=(caption,), path=path, is_variant=True, **shared))
    return found


def load_rgba(emoji: list[Emoji]) -> NDArray[np.uint8]:
    """Read the drawings as one (N, H, W, 4) array, uint8, alpha kept."""
    return np.stack([np.asarray(Image.open(e.path).convert("RGBA")) for e in emoji])


def on_white(rgba_NHW4: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Composite on white: (N, 3, H, W), float32 in -1..1, the range that a diffusers VAE works in."""
    rgb_NHW3 = rgba_NHW4[..., :3].astype(np.float32)
    alpha_NHW1 = rgba_NHW4[..., 3:].astype(np.float32) / 255
    shown_NHW3 = rgb_NHW3 * alpha_NHW1 + 255 * (1 - alpha_NHW1)
    scaled_NHW3 = (shown_NHW3 / 127.5 - 1).astype(np.float32)
    return np.ascontiguousarray(scaled_NHW3.transpose(0, 3, 1, 2))


_TONES = {"1F3FB": "light", "1F3FC": "medium-light", "1F3FD": "medium", "1F3FE": "medium-dark", "1F3FF": "dark"}


def _plain(name: str) -> str:
    """'EAR OF MAIZE' and 'flag-at' as a person would type them."""
    return re.sub(r"\s+", " ", re.sub(r"[_-]+|:", " ", name.lower())).strip()
