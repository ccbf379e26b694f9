"""How many entries JSON has and how deep they are nested, counted while it arrives and before anything is made of it.

A parser makes objects of every entry, and a validator errors: 0.9 MB of `{},` is 300,000 of them. Counting costs
about 10 ms a MiB of short texts, and next to nothing in long ones such as pictures.
"""

import re

MAX_DEPTH = 16
"""Deepest nesting; a request has five levels."""
MAX_BYTES_BETWEEN = 1024 * 1024
"""Most bytes outside of texts: numbers, and the spaces of an indented body."""

# To the end of a text, or of what is there of it, past what a backslash escapes.
_IN_TEXT = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")


class TooManyEntries(Exception):
    """There are more entries than may be."""


class TooDeep(Exception):
    """The nesting is deeper than `MAX_DEPTH`."""


class TooMuchBetween(Exception):
    """There are more than `MAX_BYTES_BETWEEN` bytes outside of texts."""


class JsonShape:
    """Counts `entries` in pieces as they come: texts and names, commas, and what brackets enclose."""

    def __init__(self, *, max_entries: int) -> None:
        self.entries = 0
        self._max_entries = max_entries
        self._between_left = MAX_BYTES_BETWEEN
        self._depth = 0
        self._in_text = False
        self._escaped = False

    def feed(self, piece: bytes) -> None:
        """Count one more piece, or raise one of this module's errors."""
        start = 0
        while start < len(piece):
            start = self._text(piece, start) if self._in_text else self._between(piece, start)

    def _text(self, piece: bytes, start: int) -> int:
        """Read on in a text; returns where to go on."""
        if self._escaped:
            self._escaped = False
            return start + 1
        quote = piece.find(b'"', start)
        end = len(piece) if quote < 0 else quote
        if piece.find(b"\\", start, end) >= 0:
            read = _IN_TEXT.match(piece, start)
            end = read.end() if read else start
            if piece[end : end + 1] == b"\\":
                # The last byte of the piece: what it escapes is to come.
                self._escaped = True
                return len(piece)
        self._in_text = end == len(piece)
        return end + 1

    def _between(self, piece: bytes, start: int) -> int:
        """Read what is outside of texts; returns where the next one begins."""
        quote = piece.find(b'"', start)
        end = len(piece) if quote < 0 else quote
        self._between_left -= end - start
        if self._between_left < 0:
            raise TooMuchBetween
        self._in_text = quote >= 0
        self._count(piece.count(b",", start, end) + self._in_text)
        for bracket in _BRACKET.findall(piece, start, end):
            self._nest(bracket)
        return end + 1

    def _nest(self, bracket: bytes) -> None:
        if bracket in b"]}":
            self._depth -= 1
            return
        self._count(1)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise TooDeep

    def _count(self, entries: int) -> None:
        self.entries += entries
        if self.entries > self._max_entries:
            raise TooManyEntries
