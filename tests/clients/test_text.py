"""What text may be, for client and services alike."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from fluxsmith_text import fault_of, is_blank, on_one_line, quoted

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"


@pytest.mark.parametrize(
    "text", ["Mr\u00a0Smith", "3.04\u202fPM", "\u6771\u3000\u4eac", FAMILY, "\u05e9\u200f", "e\u0301", ""]
)
def test_what_people_write_is_text(text: str) -> None:
    assert fault_of(text) == ""


def test_refused_are_control_characters_and_surrogates_and_nothing_else() -> None:
    refused = {number for number in range(sys.maxunicode + 1) if fault_of(chr(number))}
    assert refused == {*range(0x20), *range(0x7F, 0xA0), *range(0xD800, 0xE000)}


def test_text_of_several_lines_is_refused_likewise_but_for_breaks_and_tabs() -> None:
    refused = {number for number in range(sys.maxunicode + 1) if fault_of(chr(number), lines=True)}
    assert refused == {*range(0x20), *range(0x7F, 0xA0), *range(0xD800, 0xE000)} - {ord("\n"), ord("\t")}


def test_text_of_several_lines_has_breaks_and_tabs_but_no_others() -> None:
    assert fault_of("a\n\tb", lines=True) == ""
    assert fault_of("a\rb", lines=True) == "has the control character U+000D at place 2"
    assert fault_of("a\nb") == "has the control character U+000A at place 2"


@pytest.mark.parametrize(
    "text", ["", " \n", "\u00a0\u3000", "\u200b\u200d\ufeff", "\u3164", "\ufe0f", "\x00", "\U000e0020", "\u2065"]
)
def test_what_shows_nothing_is_blank(text: str) -> None:
    assert is_blank(text)


def test_what_shows_something_is_not_blank() -> None:
    assert not is_blank("\u200b.\u200b")
    assert not is_blank(FAMILY)


def test_a_shown_text_moves_no_terminal() -> None:
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    assert not {unicodedata.category(character) for character in on_one_line(every)} & {"Cc", "Cs", "Zl", "Zp"}
    assert on_one_line("a\x1b[2J\nb \u00e9") == "a\\x1b[2J\\nb \u00e9"


@pytest.mark.parametrize(
    "mark", ["\u202a", "\u202b", "\u202c", "\u202d", "\u202e", "\u2066", "\u2067", "\u2068", "\u2069"]
)
def test_a_shown_text_turns_nothing_that_follows_it(mark: str) -> None:
    assert fault_of(f"a{mark}gnp.txt") == ""
    assert on_one_line(f"a{mark}gnp.txt") == f"a\\u{ord(mark):04x}gnp.txt"
    assert on_one_line("\u05e9\u200f!") == "\u05e9\u200f!"


def test_a_quoted_text_reads_as_it_was_written() -> None:
    assert quoted(f"{FAMILY}\u3000\u6771") == f"'{FAMILY}\u3000\u6771'"
    assert quoted("it's") == '"it\'s"'
    assert quoted("a\nb\x1b") == "'a\\nb\\x1b'"
