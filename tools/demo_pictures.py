"""Make a dataset of one held-out style: 24 pictures to train on, 6 to measure on, and six preview prompts.

    python -m tools.demo_pictures --packages DIR --work DIR --style neon --out assets/demo

Which subjects they show is a rule, so that nobody picks those that come out well: the animals, plants, food, games,
vehicles, buildings and instruments that the base has learnt, with a name of one or two words, in the order of the
sha256 of their code point. The first 24 are trained on, the next 6 measured, the next 3 neither. The previews are the
first three of the 24, and those three.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from tools.flux_tiny.drawings import TEST_SETS, Subject, draw_sets, read_subjects
from tools.flux_tiny.measure import HeldOutStyle
from tools.flux_tiny.scenes import Album
from tools.flux_tiny.styles import HELD_OUT_STYLES

SIDE_PX = 128
TRAINED, MEASURED, NEITHER, SHOWN = 24, 6, 3, 3
CATEGORIES = {"Animals & Nature", "Food & Drink", "Activities"}
GROUPS = {"transport-ground", "transport-water", "transport-air", "place-building", "musical-instrument"}


def chosen(subjects: list[Subject]) -> list[Subject]:
    """The subjects by the rule above, in its order."""
    fitting = [
        subject
        for subject in subjects
        if not subject.held_out
        and (subject.category in CATEGORIES or subject.group in GROUPS)
        and len(subject.name.split()) <= 2
    ]
    ordered = sorted(fitting, key=lambda subject: hashlib.sha256(subject.code.encode()).hexdigest())
    return ordered[: TRAINED + MEASURED + NEITHER]


def save(pictures: Tensor, captions: list[str], folder: Path) -> None:
    """Write each picture (3, H, W) in 0..1 as a PNG with its caption beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    for picture, caption in zip(pictures, captions, strict=True):
        name = caption.partition(",")[0].replace(" ", "_")
        pixels = (picture.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        Image.fromarray(pixels).save(folder / f"{name}.png", optimize=True)
        (folder / f"{name}.txt").write_text(f"{caption}\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder that flux_tiny/fetch.sh filled")
    parser.add_argument("--work", type=Path, required=True, help="folder with the drawings, made where they lack")
    parser.add_argument("--style", choices=[*HELD_OUT_STYLES, *TEST_SETS], required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    draw_sets(arguments.packages, arguments.work / "sets")
    subjects = read_subjects(arguments.packages)
    album = Album(arguments.work / "sets", subjects, held_out=None, sets=("noto", *TEST_SETS))
    shown = HeldOutStyle(album, arguments.style).pictures(chosen(subjects), SIDE_PX)
    end = TRAINED + MEASURED
    save(shown.pictures[:TRAINED], shown.captions[:TRAINED], arguments.out / "train")
    save(shown.pictures[TRAINED:end], shown.captions[TRAINED:end], arguments.out / "heldout")
    previews = [*shown.captions[:SHOWN], *shown.captions[end:]]
    (arguments.out / "previews.txt").write_text("\n".join(previews) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
