"""The judge's card: `README.md` of its folder, with figures measured on that folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tools.flux_tiny.judge_measure import Figures
from tools.flux_tiny.judge_scenes import TOKENS

LABELS = {
    "ink": "held-out style: ink", "neon": "held-out style: neon", "crayon": "held-out style: crayon",
    "gold": "held-out style: gold", "fluent-emoji-high-contrast": "held-out set: Fluent high contrast",
    "twemoji": "held-out set: Twemoji", "fxemoji": "held-out set: FxEmojis",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Training:
    """What the card says of the run. `step_s` is measured on one core, in seconds of its time."""

    subjects: int
    pictures: int
    steps: int
    batch: int
    step_s: float
    parameters: int


def write_card(folder: Path, training: Training, figures: Figures) -> None:
    t = training
    text = CARD.format(
        subjects=t.subjects,
        pictures=f"{t.pictures:,}",
        steps=f"{t.steps:,}",
        batch=t.batch,
        tokens=TOKENS,
        step_s=f"{t.step_s:.1f}",
        minutes=round(t.steps * t.step_s / 60),
        parameters=f"{t.parameters / 1e6:.1f}",
        rows="\n".join(
            f"| {LABELS.get(kind, kind)} | {share:.0%} | {figures.names_aside[kind]:.0%} |"
            for kind, share in figures.names.items()
        ),
        mean=f"{figures.held_out_styles:.0%}",
        mean_aside=f"{figures.held_out_styles_aside:.0%}",
        style=f"{figures.style:.0%}",
        corrupted="\n".join(f"| {name} | {share:.0%} |" for name, share in figures.corrupted.items()),
        alarms=f"{figures.alarms:.0%}",
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


CARD = """---
license: apache-2.0
library_name: transformers
tags: [clip]
---

# flux-tiny-judge

A small CLIP model that says how well a picture of flux-tiny, 64 px, shows its caption, and a head that tells clean
pictures from corrupted ones. It is a yardstick for pictures of that base and of LoRAs on it, and for nothing else.

    model = CLIPModel.from_pretrained("assets/flux-tiny-judge", dtype=torch.float32)
    processor = CLIPProcessor.from_pretrained("assets/flux-tiny-judge")
    inputs = processor(text=["cat", "dog"], images=picture, padding=True, truncation=True, return_tensors="pt")
    model(**inputs).logits_per_image

{parameters} million parameters, stored in float16: a vision tower of four layers of width 128 on patches of 8 px, a
text tower of two, embeddings of 128. Captions of up to {tokens} tokens were trained; the tokenizer cuts longer ones.

## The clean head

`clean_head.safetensors` has `weight` (1, 128) and `bias` (1), float32, for the image embedding brought to length 1:
`weight @ embedding + bias`, above 0 for a clean picture. **It is no aesthetic score**: no person rated any picture. It
was taught to tell drawings from the same drawings blurred, with noise, as JPEG of the lowest quality, with tiles
shuffled, under blotches, and from what flux-tiny's VAE draws from latents of noise.

## Data

{subjects} subjects, the base's held-out ones among them, since a judge must know what it judges; none is kept from
it, so nothing is claimed for names that it never saw. {pictures} pictures were drawn from five sets: Noto and Noto of
before 2017 (Apache-2.0, Google LLC and contributors), Fluent flat, gradient and 3D (MIT, Microsoft), in the base's
trained styles and on its grounds; names and keywords are those of the sets and of emojilib (MIT). What it holds
out of sets and styles is held out here too. Seeds, wordings, views (crop, flip, color, noise, softness) and the mix of
sets and styles differ from the base's, and the base is not trained on what the judge says.

## Training

`tools/flux_tiny/judge.py`: {steps} steps of {batch} pictures and captions, each {step_s} s of one core's time, about
{minutes} minutes. Of the patches 40 % are seen, all of them in the last tenth of the steps, which take twice as long.
Plain pictures come first, those in styles bit by bit. The loss is CLIP's contrast, where captions of the same subject
are no negatives and captions with a wrong style are; beside it a prototype of each subject, which is not stored; and
the clean head's.

## Measured

How often the right bare name is nearest among 64, the 63 others drawn from all subjects with a fixed seed:

| pictures | objects, animals, food, places, faces | people, symbols, flags |
|---|---|---|
{rows}
| mean of the held-out styles and sets | {mean} | {mean_aside} |

The caption with the right style beats the same name with another style, trained styles drawn anew: {style}.

The clean head scores the corrupted picture below the clean one, trained sets and styles drawn anew:

| corruption | share |
|---|---|
{corrupted}

It scores {alarms} of the pictures of held-out styles and sets, which are clean, below 0: a style that it does not know
may look corrupted to it, so compare its scores within a style.

## License

Weights and tokenizer: Apache-2.0, from drawings under Apache-2.0 and MIT, attributed above.
"""
