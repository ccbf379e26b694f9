"""Stages that overlap: each works ahead of the next by a bounded number of items, so memory does not grow with them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def overlapped(items: Iterable[T], work: Callable[[T], R], executor: Executor, *, ahead: int) -> Iterator[R]:
    """Yield `work(item)` for each item in order, while the executor works on at most `ahead` items to come.

    Items are taken from `items` in the caller's thread, so a chain of these is a pipeline whose stages overlap. What
    `work` raises is raised here, once what was begun by then has ended: nothing goes on behind the caller's back.
    """
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(executor.submit(work, item))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
        for future in pending:
            if not future.cancelled():
                future.exception()
