"""Make the demo's images: ink-line drawings, from the flat colour pictures of `emoji-datasource-twitter`.

    python -m tools.demo_style --twitter DIR --out assets/demo

Legend: H/W height and width in px.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from tools.flux_tiny.data import Emoji, read_emoji

SIDE_PX = 128
WORK_PX = 512  # lines are found and thickened at this size, then made smaller, so that they are smooth
LINE_PX = 17  # of WORK_PX: two pixels of a 64 px picture, the thinnest that an eightfold VAE carries well
MARGIN_PX = 24  # of WORK_PX: pictures that touch their edge get an outline there as well
STEEP = 2.5  # change of colour (0 to 255) per pixel that is worth a line
PAPER = (255, 255, 255)  # flux-tiny's VAE has learnt lines in black on white; it would turn tinted paper white
INK = (10, 10, 14)
TRAIN = (
    "red apple", "dog face", "house building", "evergreen tree", "fish", "umbrella", "sailboat", "crown", "balloon",
    "tulip", "cat face", "key", "rabbit face", "pear", "bell", "automobile", "hot beverage", "elephant",
)  # fmt: skip
HELD_OUT = ("pig face", "cherries", "airplane", "cactus", "penguin", "mushroom")
PREVIEWS = ("red apple", "dog face", "automobile", "rocket", "frog face", "penguin")


def ink_drawing(picture: Image.Image) -> Image.Image:
    """Draw the borders of a picture's flat areas, and its outline, as bold dark lines on white paper."""
    side_px = WORK_PX - 2 * MARGIN_PX
    large = Image.new("RGBA", (WORK_PX, WORK_PX))
    large.paste(picture.convert("RGBA").resize((side_px, side_px), Image.Resampling.BICUBIC), (MARGIN_PX, MARGIN_PX))
    smooth = large.filter(ImageFilter.GaussianBlur(4))
    border_HW = thin_border(np.asarray(smooth, dtype=np.float32))
    lines = Image.fromarray((border_HW * 255).astype(np.uint8))
    lines = lines.filter(ImageFilter.MaxFilter(LINE_PX)).filter(ImageFilter.GaussianBlur(3))
    coverage = lines.resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
    return Image.composite(Image.new("RGB", coverage.size, INK), Image.new("RGB", coverage.size, PAPER), coverage)


def thin_border(rgba_HW4: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where colour or opacity changes most steeply along its own slope: lines about a pixel wide, (H, W)."""
    alpha_HW1 = rgba_HW4[..., 3:] / 255
    layers_HW4 = np.concatenate([rgba_HW4[..., :3] * alpha_HW1, rgba_HW4[..., 3:]], axis=-1)
    down_HW4, across_HW4 = np.gradient(layers_HW4, axis=(0, 1))
    strength_HW4 = np.hypot(down_HW4, across_HW4)
    strongest_HW1 = strength_HW4.argmax(-1)[..., None]
    strength_HW = np.take_along_axis(strength_HW4, strongest_HW1, -1)[..., 0]
    down_HW = np.take_along_axis(down_HW4, strongest_HW1, -1)[..., 0] / np.maximum(strength_HW, 1e-6)
    across_HW = np.take_along_axis(across_HW4, strongest_HW1, -1)[..., 0] / np.maximum(strength_HW, 1e-6)
    row_HW, column_HW = np.indices(strength_HW.shape)
    peak_HW = strength_HW > STEEP
    for side in (-2, 2):
        neighbour_row_HW = np.clip(np.rint(row_HW + side * down_HW).astype(int), 0, WORK_PX - 1)
        neighbour_column_HW = np.clip(np.rint(column_HW + side * across_HW).astype(int), 0, WORK_PX - 1)
        peak_HW &= strength_HW >= strength_HW[neighbour_row_HW, neighbour_column_HW]
    return peak_HW


def write_split(folder: Path, emoji: dict[str, Emoji], names: tuple[str, ...]) -> None:
    """One PNG and one caption file for each name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        stem = folder / name.replace(" ", "_")
        ink_drawing(Image.open(emoji[name].path)).save(stem.with_suffix(".png"), optimize=True)
        stem.with_suffix(".txt").write_text(f"{name}\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--twitter", type=Path, required=True, help="unpacked emoji-datasource-twitter package")
    parser.add_argument("--out", type=Path, required=True, help="folder for train/, heldout/ and previews.txt")
    arguments = parser.parse_args()
    emoji = {e.captions[0]: e for e in read_emoji(arguments.twitter, "twitter")}
    write_split(arguments.out / "train", emoji, TRAIN)
    write_split(arguments.out / "heldout", emoji, HELD_OUT)
    (arguments.out / "previews.txt").write_text("\n".join(PREVIEWS) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
