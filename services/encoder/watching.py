"""Watchers of a dataset share one poller, however many they are, and each goes at a pace of its own.

The poller reads the dataset now and then, and wakes who watches it. Nothing is queued for anybody: a slow watcher gets
the newest state when it comes for one, and the last of the encoding in any case.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from fluxsmith.v1 import encoder_pb2 as pb

INTERVAL_S, IDLE_INTERVAL_S = 0.2, 1.0
READS_AT_ONCE = 2  # of the threads, so that others get answers while many datasets are watched
ENDED = (pb.DATASET_STATE_READY, pb.DATASET_STATE_FAILED)

Key = tuple[str, str]
Read = Callable[[str, str], pb.Dataset]


@dataclass(kw_only=True, eq=False)
class Topic:
    """A watched dataset as its poller last read it. `begun` and `done` count the readings."""

    watchers: int = 0
    dataset: pb.Dataset | None = None
    over: bool = False
    error: Exception | None = None
    begun: int = 0
    done: int = 0
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    poller: asyncio.Task[None] | None = None

    def take(self, dataset: pb.Dataset) -> None:
        """Note a state, and wake who waits for one."""
        before = self.dataset
        encoded = before is not None and before.state == pb.DATASET_STATE_ENCODING
        # OPEN after ENCODING: it was READY for a moment, and samples have come since.
        self.over = dataset.state in ENDED or (encoded and dataset.state == pb.DATASET_STATE_OPEN)
        self.dataset = dataset
        self._read()

    def fail(self, error: Exception) -> None:
        """Let everybody who waits hear of an error."""
        self.over, self.error = True, error
        self._read()

    def _read(self) -> None:
        self.done = self.begun
        self.news.set()
        self.news = asyncio.Event()


class DatasetWatching:
    """States of datasets for those who watch them, on one event loop. `read` reads one, in a thread."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._topics: dict[Key, Topic] = {}
        self._reads = asyncio.Semaphore(READS_AT_ONCE)

    async def states(self, tenant: str, dataset_id: str) -> AsyncGenerator[pb.Dataset, None]:
        """Yield the dataset as it is now, then as often as it has changed, until its encoding has ended.

        Raises what `read` raises, such as `NotFound` once the dataset is deleted.
        """
        last: pb.Dataset | None = None
        encoding_seen = False
        while True:
            with self._watched(tenant, dataset_id) as topic:
                first = topic.begun + 1  # a reading under way may be of before the call
                topic.asked.set()
                while topic.done < first and not topic.over:
                    await topic.news.wait()
                if topic.done < first:  # it ended with that reading: another begins
                    continue
                while True:
                    news = topic.news  # taken before looking: what happens in between is not slept through
                    if topic.error:
                        raise topic.error
                    if topic.dataset is not None and topic.dataset != last:
                        last = topic.dataset
                        encoding_seen |= last.state == pb.DATASET_STATE_ENCODING
                        yield last
                    elif topic.over and (encoding_seen or (last and last.state in ENDED)):
                        return
                    elif topic.over:  # an encoding that was over when this watcher came is not what it waits for
                        break
                    else:
                        await news.wait()

    @contextmanager
    def _watched(self, tenant: str, dataset_id: str) -> Iterator[Topic]:
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

    def _forget(self, key: Key, topic: Topic) -> None:
        """Let who comes from now on begin anew; those who watch keep their topic."""
        if self._topics.get(key) is topic:
            del self._topics[key]

    async def _poll(self, key: Key, topic: Topic) -> None:
        """Read the dataset until its encoding has ended; what ends this otherwise is for all who watch."""
        try:
            while not topic.over:
                await self._look(key, topic)
                if not topic.over:
                    await _pause(topic)
        finally:
            self._forget(key, topic)

    async def _look(self, key: Key, topic: Topic) -> None:
        async with self._reads:
            topic.asked.clear()
            topic.begun += 1
            try:
                dataset = await asyncio.to_thread(self._read, *key)
            except Exception as error:  # noqa: BLE001 - raised by all who watch
                topic.fail(error)
            else:
                topic.take(dataset)


async def _pause(topic: Topic) -> None:
    """Wait for the next time, or for somebody who comes and must not wait."""
    busy = topic.dataset is not None and topic.dataset.state == pb.DATASET_STATE_ENCODING
    with suppress(TimeoutError):
        await asyncio.wait_for(topic.asked.wait(), INTERVAL_S if busy else IDLE_INTERVAL_S)
