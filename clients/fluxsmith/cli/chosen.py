"""What `fluxsmith train` chooses from the pictures where nothing is said: length, what to measure on, previews.

The service's own defaults are those of a program: one epoch, nothing measured, no pictures. With ten pictures that
would be ten steps, which teach nothing.
"""

import dataclasses
from collections.abc import Sequence

from fluxsmith._samples import caption_fault
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
MOST_STEPS = 100_000
"""Steps that the trainer takes."""


def choose(
    config: TrainConfig, pictures: Sequence[CaptionedImage], *, resolutions: int = 1, measured: bool, early: bool
) -> tuple[TrainConfig, list[str]]:
    """Return the configuration with what is not given chosen, and a line for people on each choice.

    `resolutions` is at how many an epoch shows each picture; `measured` says that there is a dataset to measure on,
    `early` that the job begins before all are encoded.
    """
    changes: dict[str, object] = {}
    lines = []
    if config.steps is None and config.epochs is None:
        epochs = epochs_for(len(pictures), resolutions)
        if early:  # its length must be known before its batches are
            changes["steps"] = steps = steps_for(len(pictures) * resolutions, epochs, config)
            full = " if batches are full" if (config.batch_size or 1) > 1 else ""
            chosen = f"{steps} steps for {_count(pictures)}: each is seen {_times(epochs * resolutions)}{full}"
            lines.append(f"chosen: {chosen} (--steps decides otherwise)")
        else:
            changes["epochs"] = epochs
            chosen = f"{epochs} {'epoch' if epochs == 1 else 'epochs'} of {_count(pictures)}"
            lines.append(
                f"chosen: {chosen}: each is seen {_times(epochs * resolutions)} (--epochs or --steps decide otherwise)"
            )
    if config.held_out_share is None and not measured and not early and len(pictures) >= ENOUGH_TO_HOLD_OUT:
        changes["held_out_share"] = HELD_OUT_SHARE
        lines.append(f"chosen: {HELD_OUT_SHARE:.0%} of them to measure on, not to learn (--held-out-share 0 for none)")
    if config.preview_prompts is None and (prompts := _prompts(pictures)):
        changes["preview_prompts"] = prompts
        lines.append(f"chosen: previews of {_captions(prompts)} (--preview, or --set preview_prompts= for none)")
    return dataclasses.replace(config, **changes), lines  # type: ignore[arg-type]  # by the names above


def epochs_for(pictures: int, resolutions: int = 1) -> int:
    """Return the epochs in which so many pictures are seen often enough, each at so many resolutions an epoch.

    Whatever the shapes of the pictures, an epoch shows every one of them, in as many batches as that takes.
    """
    shown = pictures * resolutions
    wanted = VIEWS_A_PICTURE * pictures
    if wanted > MOST_VIEWS:
        return max(1, MOST_VIEWS // shown)
    return -(-max(wanted, FEWEST_VIEWS) // shown)


def steps_for(shown: int, epochs: int, config: TrainConfig) -> int:
    """Return the steps of so many epochs that show so many pictures each, in batches that are full."""
    return min(-(-shown * epochs // ((config.batch_size or 1) * _accumulated(config))), MOST_STEPS)


def _prompts(pictures: Sequence[CaptionedImage]) -> tuple[str, ...]:
    """Return captions spread over the pictures, none twice."""
    captions = [picture.captions[0] for picture in pictures]
    usable = list(dict.fromkeys(caption for caption in captions if _is_prompt(caption)))
    return tuple(usable[:: max(1, -(-len(usable) // PREVIEWS))])


def _is_prompt(caption: str) -> bool:
    return len(caption) <= MOST_PROMPT and not caption_fault(caption)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _accumulated(config: TrainConfig) -> int:
    return config.gradient_accumulation_steps or 1


def _count(pictures: Sequence[CaptionedImage]) -> str:
    return f"{len(pictures)} {'picture' if len(pictures) == 1 else 'pictures'}"


def _captions(prompts: Sequence[str]) -> str:
    return "the first caption" if len(prompts) == 1 else f"{len(prompts)} of the captions"
