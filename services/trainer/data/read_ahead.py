"""Reading ahead: the next items are made while the caller works on the last one."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterable[T], count: int) -> Generator[T, None, None]:
    """The same items in the same order, of which one thread makes up to `count` before the caller asks for them.

    What making one raises is raised here when its turn comes. The thread begins with the first item asked for; once the
    iterator ends, is closed or given up, it has ended too, after the item that it was making.
    """
    source = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as thread:
        making = deque(thread.submit(_next, source) for _ in range(count))
        try:
            while made := making.popleft().result():
                making.append(thread.submit(_next, source))
                yield from made
        finally:
            for future in making:
                future.cancel()


def _next(source: Iterator[T]) -> list[T]:
    """The next item alone in a list, which is empty at the end."""
    return list(islice(source, 1))
