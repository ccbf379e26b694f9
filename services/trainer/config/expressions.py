"""Regular expressions that strangers send, run by RE2: its time and memory are bounded whatever the expression.

What the usual engines would spend minutes or gigabytes on (nested repetitions, backtracking) it refuses or matches in
linear time; in exchange there are no look-arounds and no back-references, which names of layers do not need.
"""

from __future__ import annotations

from collections.abc import Iterable

import re2

MOST_MEMORY_BYTES = 64 << 10
"""Of one expression once it is compiled, some 3,700 steps: 200 characters can ask for 200,000, which take seconds."""
_OPTIONS = re2.Options()
_OPTIONS.max_mem = MOST_MEMORY_BYTES
_OPTIONS.log_errors = False  # to the caller, not to the log


def matched_in_full(pattern: str, names: Iterable[str]) -> tuple[str, ...]:
    """The names that the expression matches from end to end, in their order. Raises `ValueError` for none such."""
    if fault := fault_of(pattern):
        raise ValueError(fault)
    compiled = re2.compile(pattern, _OPTIONS)
    return tuple(name for name in names if compiled.fullmatch(name))


def fault_of(pattern: str) -> str:
    """What keeps a text from being a regular expression; empty for nothing."""
    try:
        re2.compile(pattern, _OPTIONS)
    except re2.error as error:
        text = error.args[0] if error.args else "not understood"
        return text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    except (ValueError, UnicodeError) as error:
        return str(error)
    return ""
