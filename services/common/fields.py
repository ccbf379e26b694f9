"""Checks of request fields that both services make."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta

from fluxsmith_text import fault_of, is_blank, quoted

from services.common.errors import FieldViolation, InvalidInput, NotFound

DEFAULT_PAGE = 100
LARGEST_PAGE = 1000
_ID_PREFIXES = {"dataset": "ds", "job": "job"}


def invalid_field(field: str, description: str, remedy: str, *, reason: str = "FIELD_INVALID") -> InvalidInput:
    """The error for one wrong field."""
    return InvalidInput(
        f"{field} {description}",
        reason=reason,
        remedy=remedy,
        violations=(FieldViolation(field=field, description=description),),
    )


def shortened(value: object, most: int = 120) -> str:
    """A value as an error shows it: on one line, and no longer than fits into an answer."""
    text = quoted(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


def check_length(field: str, text: str, most: int) -> None:
    """Raise `InvalidInput` when a name has more than `most` characters, one that no text may have, or none to see."""
    if len(text) > most:
        raise invalid_field(field, f"has {len(text)} characters", f"Use at most {most}.")
    if fault := fault_of(text):
        raise invalid_field(field, fault, "Take this character out.")
    if text and is_blank(text):
        raise invalid_field(
            field, "has spaces and invisible characters alone", "Use characters that can be seen, or leave it empty."
        )


def require_id(kind: str, identifier: str) -> None:
    """Raise `NotFound` for what cannot be an identifier of this kind, such as `../x`: it would become part of a key."""
    prefix = _ID_PREFIXES[kind]
    if not re.fullmatch(prefix + "-[0-9a-f]{20}", identifier):
        raise unknown(kind, identifier)


def unknown(kind: str, identifier: str) -> NotFound:
    """The error for an identifier that names nothing of the caller's tenant."""
    return NotFound(
        f"there is no {kind} {identifier[:80]!r}",
        reason=f"{kind.upper()}_NOT_FOUND",
        remedy=f"List the {kind}s of your tenant, or create one.",
    )


def read_duration(field: str, seconds: int, nanos: int, *, least: timedelta, most: timedelta) -> timedelta:
    """The length of time in a field of google.protobuf.Duration; raises `InvalidInput` unless it is one, and in range.

    Its seconds and nanos have the same sign, and its nanos are less than a second.
    """
    if not -999_999_999 <= nanos <= 999_999_999 or seconds * nanos < 0:
        description = f"has {seconds} seconds and {nanos} nanos"
        raise invalid_field(field, description, "Give nanos from 0 to 999,999,999, with the sign of the seconds.")
    in_range = least.total_seconds() <= seconds + nanos / 1e9 <= most.total_seconds()
    if not in_range:  # before it becomes a timedelta, which holds less than the message does
        remedy = f"Use {least.total_seconds():g} s to {_length_text(most)}."
        raise invalid_field(field, f"is {seconds + nanos / 1e9:g} s", remedy)
    return timedelta(seconds=seconds, microseconds=nanos // 1000)


def _length_text(length: timedelta) -> str:
    return f"{length.days} days" if length.days else f"{length.total_seconds():g} s"


def page_limit(page_size: int) -> int:
    """Entries a page, the default filled in; raises `InvalidInput` out of range."""
    if not 0 <= page_size <= LARGEST_PAGE:
        raise invalid_field("page_size", f"is {page_size}", f"Use 1 to {LARGEST_PAGE}, or leave it unset.")
    return page_size or DEFAULT_PAGE


def page_of(ids: Sequence[str], page_size: int, page_token: str) -> tuple[list[str], str]:
    """The page of sorted `ids` after `page_token`, and the next page's token (empty on the last page)."""
    size = page_limit(page_size)
    rest = [identifier for identifier in ids if identifier > page_token]
    page = rest[:size]
    return page, page[-1] if len(rest) > size else ""
