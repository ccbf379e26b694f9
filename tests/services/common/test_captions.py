"""Captions with a trigger word."""

from __future__ import annotations

import pytest

from services.common.captions import with_trigger


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a [trigger] in a boat", "a sks in a boat"),
        ("a dog", "sks, a dog"),
        ("a dog like sks", "a dog like sks"),
        ("she asks a dog", "sks, she asks a dog"),  # not the word
        ("[trigger] and [trigger]", "sks and sks"),
        ("", "sks"),
    ],
)
def test_caption_holds_the_trigger_word(caption: str, expected: str) -> None:
    assert with_trigger(caption, "sks") == expected
    assert with_trigger(caption, "") == caption


def test_trigger_word_may_be_anything() -> None:
    assert with_trigger("a dog", "<s*k(s>") == "<s*k(s>, a dog"
    assert with_trigger("a <s*k(s> dog", "<s*k(s>") == "a <s*k(s> dog"
