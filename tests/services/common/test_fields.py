"""Checks that both services make: pages without gaps or repetitions, limits that name what they limit."""

from __future__ import annotations

from datetime import timedelta

import pytest

from services.common.errors import InvalidInput
from services.common.fields import check_length, page_limit, page_of, read_duration

IDS = [f"ds-{number:02}" for number in range(10)]


@pytest.mark.parametrize("page_size", [1, 3, 5, 9, 10, 11])
def test_pages_show_everything_once(page_size: int) -> None:
    seen, token = page_of(IDS, page_size, "")
    assert len(seen) == min(page_size, 10)
    while token:
        page, token = page_of(IDS, page_size, token)
        seen += page
    assert seen == IDS


def test_page_goes_on_after_an_entry_that_was_deleted() -> None:
    _, token = page_of(IDS, 3, "")
    assert page_of([name for name in IDS if name != token], 2, token)[0] == IDS[3:5]


@pytest.mark.parametrize("page_size", [-1, 1001])
def test_page_size_out_of_range_is_refused(page_size: int) -> None:
    with pytest.raises(InvalidInput, match=f"page_size is {page_size}"):
        page_limit(page_size)


def test_unset_page_size_means_the_default() -> None:
    assert (page_limit(0), page_limit(1), page_limit(1000)) == (100, 1, 1000)


def test_text_over_its_length_is_refused_with_its_field() -> None:
    check_length("display_name", "x" * 200, 200)
    with pytest.raises(InvalidInput, match="has 201 characters") as caught:
        check_length("display_name", "x" * 201, 200)
    assert caught.value.violations[0].field == "display_name"


SECOND, WEEK = timedelta(seconds=1), timedelta(days=7)


@pytest.mark.parametrize(
    ("seconds", "nanos", "length"),
    [
        (1, 0, SECOND),
        (604_800, 0, WEEK),
        (1, 999_999_999, timedelta(seconds=1, microseconds=999_999)),
        (3600, 500_000_000, timedelta(hours=1, milliseconds=500)),
    ],
)
def test_duration_is_read(seconds: int, nanos: int, length: timedelta) -> None:
    assert read_duration("lifetime", seconds, nanos, least=SECOND, most=WEEK) == length


@pytest.mark.parametrize(
    ("seconds", "nanos"),
    [
        (0, 2**31 - 1),
        (604_801, -2_000_000_000),
        (604_801, -1),
        (-1, 1),
        (5, -1),
        (5, 10**9),
        (0, 0),
        (0, 999_999_999),
        (604_800, 1),
        (-5, 0),
        (2**63 - 1, 0),
        (-(2**63), -999_999_999),
    ],
)
def test_odd_duration_is_the_callers_fault(seconds: int, nanos: int) -> None:
    with pytest.raises(InvalidInput, match=r"^lifetime ") as caught:
        read_duration("lifetime", seconds, nanos, least=SECOND, most=WEEK)
    assert caught.value.violations[0].field == "lifetime"


@pytest.mark.parametrize("text", ["Mr\u00a0Smith", "\u6771\u3000\u4eac", "\U0001f468\u200d\U0001f469", "e\u0301", ""])
def test_what_people_write_is_a_name(text: str) -> None:
    check_length("display_name", text, 200)


@pytest.mark.parametrize(
    ("text", "fault"),
    [("a\x07", "U\\+0007 at place 2"), ("a\nb", "U\\+000A"), (" \u3000", "invisible"), ("\u200b", "invisible")],
)
def test_names_that_show_nothing_or_more_than_text_are_refused(text: str, fault: str) -> None:
    with pytest.raises(InvalidInput, match=fault):
        check_length("display_name", text, 200)
