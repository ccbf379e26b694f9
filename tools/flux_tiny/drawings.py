"""Subjects and their drawings: what flux-tiny and its judge are made from.

A *subject* is an emoji with its names; a *set* is one artist's drawings of the subjects. `fetch.sh` unpacks the sets.

    python -m tools.flux_tiny.drawings --packages DIR --out DIR      draws every set once, at 128 px, with alpha

Legend: N drawings, S side in px.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import resvg_py
from numpy.typing import NDArray
from PIL import Image

SIDE_PX = 128
HELD_OUT_ONE_IN = 20
LEAST_INK = 0.03  # share of the area; less is a missing drawing

# Licenses: noto, noto-v1 Apache-2.0; the Fluent sets MIT. The last three are never trained on.
TRAINED_SETS = ("noto", "noto-v1", "fluent-emoji", "fluent-emoji-flat", "fluent-emoji-3d")
TEST_SETS = ("fluent-emoji-high-contrast", "twemoji", "fxemoji")

LEFT_OUT = {"country-flag", "subdivision-flag", "skin-tone", "family", "keycap"}
KEYWORD = re.compile(r"[a-z][a-z ]{1,14}")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One emoji. `names` are lower-case, the official one first; `keywords` are words that people look for it by."""

    code: str
    names: tuple[str, ...]
    keywords: tuple[str, ...]
    category: str
    group: str
    held_out: bool

    @property
    def name(self) -> str:
        return self.names[0]


def read_subjects(packages: Path) -> list[Subject]:
    """All subjects, in the order of `emoji.json`. The held-out twentieth is fixed by a hash of the code point."""
    words = json.loads((packages / "emojilib/package/dist/emoji-en-US.json").read_text(encoding="utf-8"))
    found: list[Subject] = []
    for entry in json.loads((packages / "emoji-datasource-google/package/emoji.json").read_text(encoding="utf-8")):
        if entry["subcategory"] in LEFT_OUT or not entry["has_img_google"]:
            continue
        character = "".join(chr(int(part, 16)) for part in entry["unified"].split("-"))
        label, *keywords = map(plain, words.get(character) or words.get(character.replace("\ufe0f", "")) or [""])
        names = dict.fromkeys([plain(entry["name"]), *map(plain, entry["short_names"]), label])
        digest = hashlib.sha256(entry["unified"].encode()).digest()
        found.append(
            Subject(
                code=bare(entry["unified"]),
                names=tuple(name for name in names if name),
                keywords=tuple(word for word in dict.fromkeys(keywords) if KEYWORD.fullmatch(word))[:8],
                category=entry["category"],
                group=entry["subcategory"],
                held_out=int.from_bytes(digest[:4], "big") % HELD_OUT_ONE_IN == 0,
            )
        )
    return found


def plain(name: str) -> str:
    """'EAR OF MAIZE' and 'flag-at' as a person would type them."""
    return re.sub(r"\s+", " ", re.sub(r"[_\-:]+", " ", name.lower())).strip()


def bare(code: str) -> str:
    """A code point sequence in one spelling: lower case, no variation selectors, no leading zeros."""
    return "-".join(part.lstrip("0") for part in code.lower().split("-") if part != "fe0f")


def draw(packages: Path, name: str, subject: Subject) -> NDArray[np.uint8] | None:
    """The drawing of a subject in the set `name`, (S, S, 4) uint8 RGBA, or None where the set lacks it."""
    picture = draw_webp(packages, subject) if name == "fluent-emoji-3d" else draw_svg(packages, name, subject)
    if picture is None:
        return None
    if picture.size != (SIDE_PX, SIDE_PX):
        picture = picture.resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
    rgba = np.asarray(picture)
    return rgba if (rgba[..., 3] > 40).mean() >= LEAST_INK else None


def draw_webp(packages: Path, subject: Subject) -> Image.Image | None:
    path = webp_paths(packages).get(subject.code)
    return Image.open(path).convert("RGBA") if path else None


@cache
def webp_paths(packages: Path) -> dict[str, Path]:
    return {bare(p.stem): p for p in (packages / "lobehub-fluent-emoji-3d/package/assets").glob("*.webp")}


def draw_svg(packages: Path, name: str, subject: Subject) -> Image.Image | None:
    icons, find = icon_set(packages, name)
    key = find(subject)
    if key is None:
        return None
    icon = icons["icons"][key]
    width, height = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" color="black" '
        f'viewBox="{box}" width="{SIDE_PX}" height="{SIDE_PX}">{icon["body"]}</svg>'
    )
    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")


@cache
def icon_set(packages: Path, name: str) -> tuple[dict, Callable[[Subject], str | None]]:  # type: ignore[type-arg]
    """An iconify set and how to find a subject in it: by code point where the set lists them, by name in fxemoji."""
    folder = packages / f"iconify-json-{name}/package"
    icons = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
    aliases = {key: alias["parent"] for key, alias in icons.get("aliases", {}).items()}
    if name == "fxemoji":

        def by_name(subject: Subject) -> str | None:
            keys = (re.sub(r"[^a-z0-9]", "", each) for each in subject.names)
            return next((key for key in keys if key in icons["icons"]), None)

        return icons, by_name
    codes = {bare(code): key for code, key in read_codes(packages, folder).items()}

    def by_code(subject: Subject) -> str | None:
        key = codes.get(subject.code)
        key = aliases.get(key, key)
        return key if key in icons["icons"] else None

    return icons, by_code


def read_codes(packages: Path, folder: Path) -> dict[str, str]:
    """Code point to icon name; noto-v1's list is empty, its icons are named as the flat Fluent set's are."""
    codes: dict[str, str] = json.loads((folder / "chars.json").read_text(encoding="utf-8"))
    return codes or read_codes(packages, packages / "iconify-json-fluent-emoji-flat/package")


def draw_set(packages: Path, name: str, out: Path) -> str:
    """Draw a set and write it as `out/name.npz`: `index` (N,) into the subjects, `rgba` (N, S, S, 4) uint8."""
    drawn = [(i, draw(packages, name, subject)) for i, subject in enumerate(read_subjects(packages))]
    kept = [(i, rgba) for i, rgba in drawn if rgba is not None]
    unfinished = out / f"{name}.part.npz"
    np.savez(unfinished, index=np.array([i for i, _ in kept]), rgba=np.stack([rgba for _, rgba in kept]))
    unfinished.replace(out / f"{name}.npz")
    return f"{name}: {len(kept)} drawings"


def draw_sets(packages: Path, out: Path, names: tuple[str, ...] = (*TRAINED_SETS, *TEST_SETS)) -> None:
    """Draw the sets that `out` lacks, two at a time."""
    out.mkdir(parents=True, exist_ok=True)
    missing = [name for name in names if not (out / f"{name}.npz").exists()]
    with ProcessPoolExecutor(2) as pool:
        for line in pool.map(draw_set, [packages] * len(missing), missing, [out] * len(missing)):
            print(line, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder that fetch.sh filled")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    draw_sets(arguments.packages, arguments.out)
