"""Near matches for names that were mistyped."""

from collections.abc import Iterable
from difflib import get_close_matches


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean ...?)` with the known names closest to `name`; empty when none is close."""
    close = get_close_matches(name, list(known), n=2, cutoff=0.6)
    return f" (did you mean {' or '.join(close)}?)" if close else ""
