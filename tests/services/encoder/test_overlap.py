"""Stages that overlap: in order, never further ahead than agreed, and nothing goes on behind the caller's back."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from services.encoder.overlap import overlapped


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    """Some threads."""
    with ThreadPoolExecutor(4) as executor:
        yield executor


def test_results_come_in_order_whatever_takes_longest(executor: ThreadPoolExecutor) -> None:
    def work(number: int) -> int:
        time.sleep(0.02 if number % 3 == 0 else 0)
        return number * number

    assert list(overlapped(range(20), work, executor, ahead=5)) == [number * number for number in range(20)]


@pytest.mark.parametrize("ahead", [1, 3])
def test_no_more_than_agreed_is_taken_ahead(executor: ThreadPoolExecutor, ahead: int) -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(100):
            taken += 1
            yield number

    for done, _ in enumerate(overlapped(items(), abs, executor, ahead=ahead), start=1):
        assert taken <= done + ahead - 1


def test_stages_work_at_the_same_time(executor: ThreadPoolExecutor) -> None:
    meeting = threading.Barrier(2, timeout=10)  # broken unless two items are under way at once
    assert list(overlapped(range(4), lambda _: meeting.wait() >= 0, executor, ahead=2)) == [True] * 4


def test_error_is_raised_in_its_turn_and_nothing_goes_on(executor: ThreadPoolExecutor) -> None:
    running = 0

    def work(number: int) -> int:
        nonlocal running
        running += 1
        time.sleep(0.01)
        running -= 1
        if number == 3:
            raise ValueError("the fourth")
        return number

    found = overlapped(range(100), work, executor, ahead=4)
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="the fourth"):
        next(found)
    assert running == 0


def test_caller_that_stops_leaves_nothing_running(executor: ThreadPoolExecutor) -> None:
    done: list[int] = []

    def work(number: int) -> int:
        time.sleep(0.01)
        done.append(number)
        return number

    found = overlapped(range(100), work, executor, ahead=8)
    next(found)
    found.close()  # type: ignore[attr-defined]
    count = len(done)
    time.sleep(0.05)
    assert len(done) == count < 100
