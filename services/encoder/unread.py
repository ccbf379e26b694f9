"""Parts of a caption that the text encoders do not read: its end, and what they have no token for."""

from __future__ import annotations

from collections.abc import Iterator

from fluxsmith_text import quoted

from services.encoder.inference import EncoderModels
from services.encoder.problems import Problem

WORDS_SHOWN = 120


def unread(models: EncoderModels, caption: str) -> Iterator[tuple[Problem, str]]:
    """What each encoder does not read, as a kind of problem and a phrase with the words."""
    for encoder, words in models.lost_words(caption).items():
        yield Problem.CAPTION_TRUNCATED, f"{encoder} does not read its end, {quoted(shortened(words, WORDS_SHOWN))}"
    for encoder, unknown in models.unknown_words(caption).items():
        words = shortened(", ".join(map(quoted, unknown)), WORDS_SHOWN)
        yield (
            Problem.CAPTION_UNREADABLE,
            f"{encoder} cannot read {words}: it sees <unk>, as for every character it does not know",
        )


def shortened(text: str, characters: int) -> str:
    """The text, or its beginning and an ellipsis."""
    return text if len(text) <= characters else f"{text[:characters]}…"
