"""Which linear layers a job adapts and with what rank: presets and regular expressions become explicit names here.

Peft would match names by suffix, so that `proj_out` of the single-stream blocks also hits the model's own last layer.
It is therefore handed full names only.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from services.common.errors import FieldViolation, InvalidInput
from services.common.fields import shortened
from services.trainer.config.choices import TargetPreset
from services.trainer.config.expressions import matched_in_full
from services.trainer.config.fields import ConfigFields
from services.trainer.estimate.architecture import Architecture

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


def target_ranks(linear_names: Iterable[str], config: ConfigFields) -> dict[str, int]:
    """The rank of each module to adapt, by full name in alphabetical order.

    Raises `InvalidInput` for a regular expression that matches nothing (TARGET_MATCHES_NOTHING).
    """
    names = target_names(linear_names, config)
    ranks: dict[str, int] = {}
    for pattern, rank in sorted(config.rank_pattern.items()):
        matched = matching(pattern, names, "rank_pattern")
        for name in matched:
            ranks.setdefault(name, rank)  # the first pattern that matches counts
    return {name: ranks.get(name, config.rank) for name in names}


def target_names(linear_names: Iterable[str], config: ConfigFields) -> tuple[str, ...]:
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
    """The same for a transformer given by its `config.json`, by arithmetic: a server never imports diffusers."""
    return tuple(Architecture.of(transformer_config, text_tokens=0).linears())


def matching(pattern: str, names: Sequence[str], field: str) -> tuple[str, ...]:
    """The names that a user's expression matches in full. `field` of the configuration is named in errors."""
    try:
        matched = matched_in_full(pattern, names)
    except ValueError:  # no expression at all, which `conflicts.py` has told
        matched = ()
    if not matched:
        raise _matches_nothing(field, pattern, names)
    return matched


def exactly(names: Iterable[str]) -> str:
    """A regular expression that matches these names in full, and nothing else by suffix either."""
    return "^(?:" + "|".join(map(re.escape, names)) + ")$"


def _matches_nothing(field: str, pattern: str, names: Sequence[str]) -> InvalidInput:
    plain = pattern.replace(r"\d+", "0").replace("\\", "")
    # One name of a kind: all blocks have the same layers.
    kinds = list({re.sub(r"\d+", "N", name, count=1): name for name in reversed(names)}.values())
    nearest = difflib.get_close_matches(plain, kinds, n=3, cutoff=0.0)
    whom = "that can be adapted" if field == "target_regex" else "that this job adapts"
    description = f"has {shortened(pattern)}, which matches no layer {whom}; the nearest: {', '.join(nearest)}"
    return InvalidInput(
        f"config.{field} {description}",
        reason="TARGET_MATCHES_NOTHING",
        remedy="Write an expression that matches full module names, as those named.",
        violations=(FieldViolation(field=f"config.{field}", description=description),),
    )
