"""Watchers of a dataset share one poller, however many they are, and each goes at a pace of its own.

The poller reads the dataset now and then, and wakes who watches it. Nothing is queued for anybody: a slow watcher gets
the newest state when it comes for one, and the last of the encoding in any case.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Generic, TypeVar

INTERVAL_S, IDLE_INTERVAL_S = 0.2, 1.0
READS_AT_ONCE = 2  # of the threads, so that others get answers while many datasets are watched

Key = tuple[str, str]
T = TypeVar("T")


class Stage(Enum):
    """How far a dataset is with its encoding."""

    OPEN = auto()
    ENCODING = auto()
    ENDED = auto()


@dataclass(frozen=True, kw_only=True)
class Seen(Generic[T]):
    """What was read of a dataset."""

    stage: Stage
    dataset: T


@dataclass(kw_only=True, eq=False)
class Topic(Generic[T]):
    """A watched dataset as its poller last read it. `begun` and `done` count the readings."""

    watchers: int = 0
    seen: Seen[T] | None = None
    over: bool = False
    error: Exception | None = None
    begun: int = 0
    done: int = 0
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    poller: asyncio.Task[None] | None = None

    def take(self, seen: Seen[T]) -> None:
        """Note a state, and wake who waits for one."""
        encoded = self.seen is not None and self.seen.stage is Stage.ENCODING
        # OPEN after ENCODING: it has ended for a moment, and samples have come since.
        self.over = seen.stage is Stage.ENDED or (encoded and seen.stage is Stage.OPEN)
        self.seen = seen
        self._read()

    def fail(self, error: Exception) -> None:
        """Let everybody who waits hear of an error."""
        self.over, self.error = True, error
        self._read()

    def _read(self) -> None:
        self.done = self.begun
        self.news.set()
        self.news = asyncio.Event()


class DatasetWatching(Generic[T]):
    """States of datasets for those who watch them, on one event loop. `read` reads one, in a thread."""

    def __init__(self, read: Callable[[str, str], Seen[T]]) -> None:
        self._read = read
        self._topics: dict[Key, Topic[T]] = {}
        self._reads = asyncio.Semaphore(READS_AT_ONCE)

    async def states(self, tenant: str, dataset_id: str) -> AsyncGenerator[T, None]:
        """Yield the dataset as it is now, then as often as it has changed, until its encoding has ended.

        Raises what `read` raises, such as `NotFound` once the dataset is deleted.
        """
        last: Seen[T] | None = None
        encoding_seen = False
        while last is None or not (last.stage is Stage.ENDED or encoding_seen):
            with self._watched(tenant, dataset_id) as topic:
                async with aclosing(_of_topic(topic, last)) as news:
                    async for last in news:
                        encoding_seen |= last.stage is Stage.ENCODING
                        yield last.dataset

    @contextmanager
    def _watched(self, tenant: str, dataset_id: str) -> Iterator[Topic[T]]:
        key = (tenant, dataset_id)
        topic = self._topics.setdefault(key, Topic())
        topic.watchers += 1
        if topic.poller is None:
            topic.poller = asyncio.create_task(self._poll(key, topic), name=f"watching {dataset_id}")
        try:
            yield topic
        finally:
            topic.watchers -= 1
            if not topic.watchers:
                self._forget(key, topic)
                topic.poller.cancel()

    def _forget(self, key: Key, topic: Topic[T]) -> None:
        """Let who comes from now on begin anew; those who watch keep their topic."""
        if self._topics.get(key) is topic:
            del self._topics[key]

    async def _poll(self, key: Key, topic: Topic[T]) -> None:
        """Read the dataset until its encoding has ended; what ends this otherwise is for all who watch."""
        try:
            while not topic.over:
                await self._look(key, topic)
                if not topic.over:
                    await _pause(topic)
        finally:
            self._forget(key, topic)

    async def _look(self, key: Key, topic: Topic[T]) -> None:
        async with self._reads:
            topic.asked.clear()
            topic.begun += 1
            try:
                seen = await asyncio.to_thread(self._read, *key)
            except Exception as error:  # noqa: BLE001 - raised by all who watch
                topic.fail(error)
            else:
                topic.take(seen)


async def _of_topic(topic: Topic[T], last: Seen[T] | None) -> AsyncGenerator[Seen[T], None]:
    """What is read from now on and differs from the one before, until the topic is over."""
    first = topic.begun + 1  # a reading under way may be of before the call
    topic.asked.set()
    while topic.done < first and not topic.over:
        await topic.news.wait()
    while topic.done >= first:
        news = topic.news  # taken before looking: what happens in between is not slept through
        if topic.error:
            raise topic.error
        if topic.seen is not None and topic.seen != last:
            last = topic.seen
            yield last
        elif topic.over:
            return
        else:
            await news.wait()


async def _pause(topic: Topic[T]) -> None:
    """Wait for the next time, or for somebody who comes and must not wait."""
    busy = topic.seen is not None and topic.seen.stage is Stage.ENCODING
    with suppress(TimeoutError):
        await asyncio.wait_for(topic.asked.wait(), INTERVAL_S if busy else IDLE_INTERVAL_S)
