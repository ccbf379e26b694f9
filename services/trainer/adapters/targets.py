"""Which linear layers a job adapts and with what rank: presets and regular expressions become explicit names here.

Peft would match names by suffix, so that `proj_out` of the single-stream blocks also hits the model's own last layer.
It is therefore handed full names only.
"""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import regex
import torch
from torch import nn

from services.common.errors import FieldViolation, InvalidInput
from services.trainer.config import TrainConfig
from services.trainer.config.choices import TargetPreset

MATCHING_TIMEOUT_S = 0.5
"""For all names of the model together; a sensible expression needs a few milliseconds."""

_IMAGE_ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
_TEXT_ATTENTION = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out")
_IMAGE_STREAM = (*_IMAGE_ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_mlp", "proj_out")
_TEXT_STREAM = (*_TEXT_ATTENTION, "ff_context.net.0.proj", "ff_context.net.2")
_PRESETS = {
    TargetPreset.IMAGE_STREAM: frozenset(_IMAGE_STREAM),
    TargetPreset.IMAGE_AND_TEXT_STREAM: frozenset(_IMAGE_STREAM + _TEXT_STREAM),
    TargetPreset.ATTENTION: frozenset(_IMAGE_ATTENTION + _TEXT_ATTENTION),
}
_IN_BLOCK = re.compile(r"(?:single_)?transformer_blocks\.\d+\.(.+)")
# Left out of the model while guidance is bypassed, so it is no target in any job.
_GUIDANCE = "time_text_embed.guidance_embedder."


def target_ranks(linear_names: Iterable[str], config: TrainConfig) -> dict[str, int]:
    """The rank of each module to adapt, by full name in alphabetical order.

    Raises `InvalidInput` for a regular expression that matches nothing (TARGET_MATCHES_NOTHING) or takes longer than
    `MATCHING_TIMEOUT_S` (REGEX_TOO_SLOW).
    """
    names = target_names(linear_names, config)
    ranks: dict[str, int] = {}
    for pattern, rank in sorted(config.rank_pattern.items()):
        matched = matching(pattern, names, "rank_pattern")
        for name in matched:
            ranks.setdefault(name, rank)  # the first pattern that matches counts
    return {name: ranks.get(name, config.rank) for name in names}


def target_names(linear_names: Iterable[str], config: TrainConfig) -> tuple[str, ...]:
    """Full names of the modules to adapt, in alphabetical order. Raises `InvalidInput` like `target_ranks`."""
    names = sorted(linear_names)
    if config.target_regex:
        return matching(config.target_regex, names, "target_regex")
    found = tuple(name for name in names if _in_preset(name, config.targets))
    if not found:
        raise _matches_nothing("targets", str(config.targets), names)
    return found


def _in_preset(name: str, preset: TargetPreset) -> bool:
    inside = _IN_BLOCK.fullmatch(name)
    if not inside:
        return False
    return preset is TargetPreset.ALL_LINEAR or inside[1] in _PRESETS[preset]


def linear_names(transformer: nn.Module) -> tuple[str, ...]:
    """Names of the linear layers that can be adapted, of a transformer that has no adapter."""
    return tuple(
        name
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith(_GUIDANCE)
    )


def linear_names_of(transformer_config: Mapping[str, Any]) -> tuple[str, ...]:
    """The same for a transformer given by its `config.json`; needs no weights and about no memory."""
    from diffusers import FluxTransformer2DModel  # noqa: PLC0415 - seconds and 200 MB, which a server seldom needs

    with torch.device("meta"):
        return linear_names(FluxTransformer2DModel.from_config(dict(transformer_config)))


def matching(pattern: str, names: Sequence[str], field: str) -> tuple[str, ...]:
    """The names that a user's expression matches in full. `field` of the configuration is named in errors."""
    try:
        matched = matched_in_time(pattern, names)
    except TimeoutError:
        raise _too_slow(field, pattern) from None
    if not matched:
        raise _matches_nothing(field, pattern, names)
    return matched


def matched_in_time(pattern: str, names: Sequence[str]) -> tuple[str, ...]:
    """The names that a stranger's expression matches in full. Raises `TimeoutError`, and `regex.error` for no such."""
    compiled = regex.compile(pattern)
    end = time.monotonic() + MATCHING_TIMEOUT_S
    # A timeout of zero or less would mean none.
    return tuple(name for name in names if compiled.fullmatch(name, timeout=max(1e-6, end - time.monotonic())))


def exactly(names: Iterable[str]) -> str:
    """A regular expression that matches these names in full, and nothing else by suffix either."""
    return "^(?:" + "|".join(map(re.escape, names)) + ")$"


def _matches_nothing(field: str, pattern: str, names: Sequence[str]) -> InvalidInput:
    plain = pattern.replace(r"\d+", "0").replace("\\", "")
    # One name of a kind: all blocks have the same layers.
    kinds = list({re.sub(r"\d+", "N", name, count=1): name for name in reversed(names)}.values())
    nearest = difflib.get_close_matches(plain, kinds, n=3, cutoff=0.0)
    description = f"has {pattern!r}, which matches no layer that can be adapted; the nearest: {', '.join(nearest)}"
    return InvalidInput(
        f"config.{field} {description}",
        reason="TARGET_MATCHES_NOTHING",
        remedy="Write an expression that matches full module names, as those named.",
        violations=(FieldViolation(field=f"config.{field}", description=description),),
    )


def _too_slow(field: str, pattern: str) -> InvalidInput:
    description = f"has {pattern!r}, which took over {MATCHING_TIMEOUT_S:g} s to match"
    return InvalidInput(
        f"config.{field} {description}",
        reason="REGEX_TOO_SLOW",
        remedy="Write it without a repetition inside a repetition.",
        violations=(FieldViolation(field=f"config.{field}", description=description),),
    )
