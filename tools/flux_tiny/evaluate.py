"""Look at a flux-tiny and measure it: `samples.png` from the plain FluxPipeline, and tables of PSNR and flow losses.

python -m tools.flux_tiny.evaluate --packages DIR --work DIR --folder assets/flux-tiny
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import FluxPipeline
from PIL import Image, ImageDraw, ImageFont

from tools.flux_tiny.drawings import TEST_SETS, TRAINED_SETS, draw_sets, read_subjects
from tools.flux_tiny.measure import flow_table, psnr_table
from tools.flux_tiny.scenes import Album

CAPTIONS = (
    "red apple", "banana", "strawberry", "slice of pizza", "dog face", "cat face", "frog face", "penguin",
    "rose", "cactus", "house building", "rocket", "automobile", "umbrella", "soccer ball", "grinning face",
)  # fmt: skip
GUIDANCE = 3.5
STEPS = 28
SEED = 0
SCALE = 3
COLUMNS = 8
LABEL_PX = 22


def draw_samples(pipeline: FluxPipeline, tokens: int) -> Image.Image:
    """One picture of each caption, the first seed each time, captions written underneath."""
    pictures = [
        pipeline(
            caption,
            height=64,
            width=64,
            guidance_scale=GUIDANCE,
            num_inference_steps=STEPS,
            max_sequence_length=tokens,
            generator=torch.Generator().manual_seed(SEED),
        ).images[0]
        for caption in CAPTIONS
    ]
    return contact_sheet(pictures, CAPTIONS)


def contact_sheet(pictures: list[Image.Image], captions: tuple[str, ...]) -> Image.Image:
    """Pictures in rows of COLUMNS, enlarged SCALE times, each over its caption."""
    width_px = pictures[0].width * SCALE
    height_px = pictures[0].height * SCALE + LABEL_PX
    sheet = Image.new("RGB", (width_px * COLUMNS, height_px * -(-len(pictures) // COLUMNS)), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=14)
    for place, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left, top = place % COLUMNS * width_px, place // COLUMNS * height_px
        sheet.paste(picture.resize((width_px, width_px), Image.Resampling.LANCZOS), (left, top))
        pen.text((left + width_px / 2, top + width_px), caption, fill="black", font=font, anchor="ma")
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder that fetch.sh filled")
    parser.add_argument("--work", type=Path, required=True, help="folder with the drawings, made where they lack")
    parser.add_argument("--folder", type=Path, required=True, help="the pipeline; samples.png goes here")
    arguments = parser.parse_args()
    sets: Path = arguments.work / "sets"
    draw_sets(arguments.packages, sets)
    subjects = read_subjects(arguments.packages)
    every = Album(sets, subjects, held_out=None, sets=("noto", *TEST_SETS))
    learnt, unseen = (Album(sets, subjects, held_out=held_out) for held_out in (False, True))
    unseen_everywhere = Album(sets, subjects, held_out=True, sets=(*TRAINED_SETS, *TEST_SETS))
    pipeline = FluxPipeline.from_pretrained(arguments.folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    draw_samples(pipeline, pipeline.tokenizer_2.model_max_length).save(arguments.folder / "samples.png", optimize=True)
    for name, value in psnr_table(pipeline.vae, unseen_everywhere).items():
        print(f"{name:32} {value:5.1f} dB")
    for name, loss in flow_table(pipeline, every, learnt, unseen).items():
        print(
            f"{name:45} zero {loss.zero:.3f} named {loss.named:.3f} = {loss.share:.2f} of it, "
            f"empty {loss.empty:.3f}, wrong {loss.wrong:.3f}"
        )


if __name__ == "__main__":
    main()
