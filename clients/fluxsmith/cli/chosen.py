"""What `fluxsmith train` chooses from the pictures where nothing is said: length, what to measure on, previews.

The service's own defaults are those of a program: one epoch, nothing measured, no pictures. With ten pictures that
would be ten steps, which teach nothing.
"""

import dataclasses
from collections.abc import Sequence

from fluxsmith.data import CaptionedImage
from fluxsmith.training import TrainConfig

VIEWS_A_PICTURE = 100
FEWEST_VIEWS, MOST_VIEWS = 1000, 4000
"""Pictures shown in all, but every one once in any case."""
HELD_OUT_SHARE = 0.1
ENOUGH_TO_HOLD_OUT = 20
"""Pictures; of fewer, each is needed."""
PREVIEWS = 2
MOST_PROMPT = 2000
"""Characters that the trainer takes."""


def choose(
    config: TrainConfig, pictures: Sequence[CaptionedImage], *, measured: bool, early: bool
) -> tuple[TrainConfig, list[str]]:
    """Return the configuration with what is not given chosen, and a line for people on each choice.

    `measured` says that there is a dataset to measure on, `early` that the job begins before all are encoded.
    """
    changes: dict[str, object] = {}
    lines = []
    if config.steps is None and config.epochs is None:
        changes["steps"] = steps = steps_for(len(pictures), (config.batch_size or 1) * _accumulated(config))
        lines.append(f"chosen: {steps} steps for {_count(pictures)} (--steps or --epochs decide otherwise)")
    if config.held_out_share is None and not measured and not early and len(pictures) >= ENOUGH_TO_HOLD_OUT:
        changes["held_out_share"] = HELD_OUT_SHARE
        lines.append(f"chosen: {HELD_OUT_SHARE:.0%} of them to measure on, not to learn (--held-out-share 0 for none)")
    if config.preview_prompts is None and (prompts := _prompts(pictures)):
        changes["preview_prompts"] = prompts
        lines.append(f"chosen: previews of {_captions(prompts)} (--preview, or --set preview_prompts= for none)")
    return dataclasses.replace(config, **changes), lines  # type: ignore[arg-type]  # by the names above


def steps_for(pictures: int, batch: int) -> int:
    """Return the steps in which so many pictures are seen often enough, given how many a step sees."""
    views = max(pictures, min(max(VIEWS_A_PICTURE * pictures, FEWEST_VIEWS), MOST_VIEWS))
    return -(-views // batch)


def _prompts(pictures: Sequence[CaptionedImage]) -> tuple[str, ...]:
    """Return captions spread over the pictures, none twice."""
    captions = [picture.captions[0] for picture in pictures]
    usable = list(dict.fromkeys(caption for caption in captions if 0 < len(caption) <= MOST_PROMPT))
    return tuple(usable[:: max(1, -(-len(usable) // PREVIEWS))])


def _accumulated(config: TrainConfig) -> int:
    return config.gradient_accumulation_steps or 1


def _count(pictures: Sequence[CaptionedImage]) -> str:
    return f"{len(pictures)} {'picture' if len(pictures) == 1 else 'pictures'}"


def _captions(prompts: Sequence[str]) -> str:
    return "the first caption" if len(prompts) == 1 else f"{len(prompts)} of the captions"
