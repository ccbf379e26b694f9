"""Names as people type them: in any case, and near matches for those that were mistyped."""

from collections.abc import Iterable
from difflib import get_close_matches
from enum import StrEnum
from typing import TypeVar

from fluxsmith_text import quoted

_LONGEST_MISTYPED = 100

_Choice = TypeVar("_Choice", bound=StrEnum)


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean ...?)` with the known names closest to `name`; empty when none is close."""
    # Much longer than any name is no mistyped one, and the search would read all of it.
    close = get_close_matches(name, list(known), n=2, cutoff=0.6) if len(name) <= _LONGEST_MISTYPED else []
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def require_known(given: Iterable[str], keywords: type, *, call: str) -> None:
    """Raise `TypeError` for a keyword that `keywords`, a `TypedDict`, does not have, with the nearest that it has."""
    known = set(keywords.__annotations__)
    if unknown := sorted(set(given) - known):
        problem = f"unexpected keyword argument {unknown[0]!r}{suggestion(unknown[0], known)}"
        raise TypeError(f"{call}() got an {problem}")


def read_choice(kind: type[_Choice], text: str) -> _Choice:
    """Return the choice of that name, in upper or lower case; raises `ValueError` with all names, nearest first."""
    name = text.strip().upper().replace("-", "_")
    if name in set(kind):
        return kind(name)
    names = [choice.lower() for choice in kind]
    near = get_close_matches(name.lower(), names, n=len(names), cutoff=0.6)
    ordered = [*near, *(other for other in names if other not in near)]
    raise ValueError(f"{quoted(text)} is none of {', '.join(ordered)}{suggestion(name.lower(), names)}")
