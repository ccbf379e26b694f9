"""Captions with a trigger word: what the encoder makes of those of samples, and the trainer of preview prompts."""

from __future__ import annotations

import re

from fluxsmith_text import is_blank

TRIGGER_PLACE = "[trigger]"


def with_trigger(caption: str, trigger_word: str) -> str:
    """A caption that holds the trigger word: where `[trigger]` stands, or else before it."""
    if not trigger_word:
        return caption
    if is_blank(caption):
        return trigger_word
    if TRIGGER_PLACE in caption:
        return caption.replace(TRIGGER_PLACE, trigger_word)
    there = re.search(rf"(?<!\w){re.escape(trigger_word)}(?!\w)", caption)
    return caption if there else f"{trigger_word}, {caption}"
