"""What can be wrong with a sample: kinds, in the words of the contract's SampleProblemReason, and the error for one."""

from __future__ import annotations

from enum import Enum


class Problem(Enum):
    """Kinds of problem with a sample; the names are those of the contract's SampleProblemReason."""

    NOT_AN_IMAGE = "NOT_AN_IMAGE"
    TRUNCATED = "TRUNCATED"
    TOO_LARGE = "TOO_LARGE"
    TOO_SMALL = "TOO_SMALL"
    CAPTION_EMPTY = "CAPTION_EMPTY"
    CAPTION_TOO_LONG = "CAPTION_TOO_LONG"
    DUPLICATE = "DUPLICATE"
    CAPTION_TRUNCATED = "CAPTION_TRUNCATED"
    ORIGINAL_LOST = "ORIGINAL_LOST"
    NOT_FINITE = "NOT_FINITE"
    COLOR_PROFILE_IGNORED = "COLOR_PROFILE_IGNORED"
    CACHE_REPAIRED = "CACHE_REPAIRED"
    TRIGGER_MISSING = "TRIGGER_MISSING"
    CAPTION_UNREADABLE = "CAPTION_UNREADABLE"


WARNINGS = frozenset(
    {
        Problem.DUPLICATE,
        Problem.CAPTION_TRUNCATED,
        Problem.COLOR_PROFILE_IGNORED,
        Problem.CACHE_REPAIRED,
        Problem.TRIGGER_MISSING,
        Problem.CAPTION_UNREADABLE,
    }
)
"""Kinds that are worth knowing and do not keep a sample from being used."""


class BadSample(Exception):
    """One sample cannot be used: which kind of problem, and the remedy in the message."""

    def __init__(self, problem: Problem, message: str) -> None:
        super().__init__(message)
        self.problem = problem
        self.message = message
