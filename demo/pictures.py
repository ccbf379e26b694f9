"""Pictures of the result: the same captions and seeds without and with the LoRA, and the loss curves."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxPipeline
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from demo.history import History
from services.common.logs import set_up_logging
from services.trainer.results.smoothing import centered_means, mean_width, without_spikes

SIDE_PX = 64  # what flux-tiny was trained at
SHOWN_PX = 192
MARGIN_PX = 12
CAPTION_PX = 44
SAMPLING_STEPS = 28
GUIDANCE = 3.5
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Preview:
    """One caption drawn from the same seed without and with the LoRA."""

    caption: str
    before: Image.Image
    after: Image.Image


def draw_previews(base_model: Path, lora: Path, captions: list[str]) -> list[Preview]:
    """Sample with diffusers' own pipeline and loader, so that the file is shown to work outside this project."""
    set_up_logging("ERROR")
    pipeline = FluxPipeline.from_pretrained(base_model, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    before = [sample(pipeline, caption) for caption in captions]
    pipeline.load_lora_weights(lora)
    after = [sample(pipeline, caption) for caption in captions]
    return [Preview(caption=c, before=b, after=a) for c, b, a in zip(captions, before, after, strict=True)]


def sample(pipeline: FluxPipeline, caption: str) -> Image.Image:
    """One picture at the size and text length that flux-tiny was trained with."""
    picture: Image.Image = pipeline(
        caption,
        height=SIDE_PX,
        width=SIDE_PX,
        num_inference_steps=SAMPLING_STEPS,
        guidance_scale=GUIDANCE,
        max_sequence_length=pipeline.tokenizer_2.model_max_length,
        generator=torch.Generator().manual_seed(SEED),
    ).images[0]
    return picture


def draw_before_after(previews: list[Preview], learned_captions: set[str]) -> Image.Image:
    """Two rows of pictures, the base above and the LoRA below, captions under each column."""
    step_px = SHOWN_PX + MARGIN_PX
    label_px = 96
    size = (label_px + step_px * len(previews) + MARGIN_PX, 2 * step_px + CAPTION_PX + MARGIN_PX)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(15)
    for row, label in enumerate(("base", "with LoRA")):
        draw.text((MARGIN_PX, MARGIN_PX + row * step_px + SHOWN_PX // 2), label, "black", font, anchor="lm")
    for column, preview in enumerate(previews):
        left = label_px + column * step_px
        for row, picture in enumerate((preview.before, preview.after)):
            enlarged = picture.resize((SHOWN_PX, SHOWN_PX), Image.Resampling.LANCZOS)
            sheet.paste(enlarged, (left, MARGIN_PX + row * step_px))
        seen = "in the training images" if preview.caption in learned_captions else "never seen in this style"
        text = f"{textwrap.shorten(preview.caption, 28)}\n({seen})"
        draw.multiline_text((left + SHOWN_PX // 2, 2 * step_px + MARGIN_PX), text, "black", font, "ma", align="center")
    return sheet


def draw_losses(history: History, path: Path) -> None:
    """The held-out curve, and the training losses it is compared with (noisy: each step draws its own noise levels)."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    finite = {step: loss for step, loss in history.training_losses.items() if math.isfinite(loss)}
    steps, losses = list(finite), without_spikes(np.array(list(finite.values())))
    axes.plot(steps, losses, color="0.8", label="training, each step")
    if (width := mean_width(len(steps))) > 1:
        middle = steps[width // 2 : len(steps) - width // 2]
        label = f"training, centered mean of {width} steps"
        axes.plot(middle, centered_means(losses, width), color="tab:blue", label=label)
    axes.plot(
        list(history.held_out_losses),
        list(history.held_out_losses.values()),
        "o-",
        color="tab:red",
        label="held out, at fixed noise",
    )
    axes.set(xlabel="optimizer step", ylabel="flow-matching loss", title="Six drawings that were never trained on")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
