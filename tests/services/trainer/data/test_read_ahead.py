"""Reading ahead: the same items, made early but not too early, and nothing left behind."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from itertools import count

import pytest

from services.trainer.data.read_ahead import ahead


def readers() -> list[threading.Thread]:
    """The threads that read ahead now."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def noted(made: list[int]) -> Iterator[int]:
    """0, 1, 2 and so on, each noted when it is made."""
    for number in count():
        made.append(number)
        yield number


def settled(made: list[int], size: int) -> int:
    """How many were made once `size` were, and a little later."""
    deadline_s = time.monotonic() + 5
    while len(made) < size and time.monotonic() < deadline_s:
        time.sleep(0.001)
    time.sleep(0.05)
    return len(made)


@pytest.mark.parametrize("items", [[], [1], [3, 1, 2, 5, 4]])
def test_items_are_the_same_in_the_same_order(items: list[int]) -> None:
    assert list(ahead(items, 2)) == items
    assert not readers()


def test_items_to_come_are_made_while_the_caller_works_but_not_too_many() -> None:
    made: list[int] = []
    items = ahead(noted(made), 2)
    assert not made
    assert next(items) == 0
    assert settled(made, 3) == 3
    assert next(items) == 1
    assert settled(made, 4) == 4
    items.close()


def test_items_are_made_by_one_thread_that_is_not_the_caller() -> None:
    makers = set(ahead((threading.get_ident() for _ in range(6)), 3))
    assert len(makers) == 1
    assert threading.get_ident() not in makers


def test_what_making_an_item_raises_comes_out_at_its_turn() -> None:
    def broken() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("the store is gone")

    items = ahead(broken(), 2)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(OSError, match="the store is gone"):
        next(items)
    assert not readers()


def test_nothing_runs_on_after_it_is_closed() -> None:
    made: list[int] = []
    items = ahead(noted(made), 2)
    next(items)
    assert readers()
    items.close()
    assert not readers()
    size = len(made)
    assert settled(made, size) == size


def test_nothing_runs_on_after_it_is_given_up() -> None:
    items = ahead(noted([]), 2)
    next(items)
    del items
    gc.collect()
    assert not readers()


def test_caller_that_fails_leaves_nothing_running() -> None:
    def work() -> None:
        for number in ahead(count(), 2):
            if number == 3:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    gc.collect()
    assert not readers()
