"""Who watches jobs is told of their events by one poller, however many watch, and in the pace of each.

The poller asks the database for the newest sequence of all watched jobs at once, reads what is new once a job, and
wakes who watches it. Who is further behind than the events that are kept in memory reads pages of its own; so does who
has just come. Nothing is queued for anybody: a slow watcher holds one page.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from services.common.errors import NotReady
from services.common.fields import unknown
from services.trainer.database.job_store import Head, JobStore
from services.trainer.jobs import StoredEvent

INTERVAL_S = 0.1
PAGE_EVENTS = 200
READS_AT_ONCE = 2  # of the pool's threads, so that others get answers while many catch up


@dataclass(kw_only=True)
class Topic:
    """A watched job as the poller last saw it: `recent` has its newest events, without a gap."""

    job_id: str
    watchers: int = 0
    head: Head | None = None
    recent: Sequence[StoredEvent] = ()
    error: BaseException | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def after(self, sequence: int) -> Sequence[StoredEvent] | None:
        """The events after this one, as far as they are known; None when that must be read."""
        if self.error:
            raise self.error
        if self.head is None:
            return None
        if sequence >= self.head.last_sequence:
            return ()
        if self.recent and self.recent[0].sequence <= sequence + 1:
            return self.recent[sequence + 1 - self.recent[0].sequence :]
        return None

    def over(self, sequence: int) -> bool:
        """Whether nothing comes after this event any more."""
        return self.head is not None and self.head.ended and self.head.last_sequence <= sequence

    def take(self, head: Head, events: Sequence[StoredEvent]) -> None:
        """Note where the job stands now, with the newest of its new events, and wake who waits for them."""
        if head == self.head:
            return
        self.head = head
        if events:
            goes_on = self.recent and self.recent[-1].sequence + 1 == events[0].sequence
            self.recent = [*self.recent, *events][-PAGE_EVENTS:] if goes_on else events
        if self.recent and self.recent[-1].sequence != head.last_sequence:
            self.recent = ()
        self._wake()

    def fail(self, error: BaseException) -> None:
        """Let everybody who waits hear of an error."""
        self.error = error
        self._wake()

    def _wake(self) -> None:
        self.news.set()
        self.news = asyncio.Event()


class Watching:
    """Events of jobs for those who watch them, on one event loop."""

    def __init__(self, jobs: JobStore) -> None:
        self._jobs = jobs
        self._topics: dict[str, Topic] = {}
        self._poller: asyncio.Task[None] | None = None
        self._reads = asyncio.Semaphore(READS_AT_ONCE)

    async def events(self, job_id: str, after_sequence: int) -> AsyncGenerator[StoredEvent, None]:
        """Yield the events of a job after this one, then new ones as they come, until it has ended.

        Raises `NotReady` (`EVENTS_REMOVED`) for events that are gone, `NotFound` once the job is deleted, and
        `Unavailable`.
        """
        sequence = after_sequence
        with self._watched(job_id) as topic:
            while True:
                news = topic.news  # taken before looking: what happens in between is not slept through
                page = topic.after(sequence)
                if page is None:
                    page = await self._read(job_id, sequence)
                for event in page:
                    yield event
                    sequence = event.sequence
                if page:
                    continue
                if topic.over(sequence):
                    return
                await news.wait()

    async def _read(self, job_id: str, sequence: int) -> Sequence[StoredEvent]:
        async with self._reads:
            return await asyncio.to_thread(self._jobs.events_after, job_id, sequence, limit=PAGE_EVENTS)

    @contextmanager
    def _watched(self, job_id: str) -> Iterator[Topic]:
        topic = self._topics.setdefault(job_id, Topic(job_id=job_id))
        topic.watchers += 1
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll(), name="watching")
            self._poller.add_done_callback(self._stopped)
        try:
            yield topic
        finally:
            topic.watchers -= 1
            if not topic.watchers and self._topics.get(job_id) is topic:
                del self._topics[job_id]

    async def _poll(self) -> None:
        """Look after the watched jobs until there are none."""
        while self._topics:
            seen = {job_id: topic.head for job_id, topic in self._topics.items()}
            found = await asyncio.to_thread(self._look, seen)
            for job_id, (head, events) in found.items():
                if (topic := self._topics.get(job_id)) and topic.head == seen[job_id]:
                    topic.take(head, events)
            for job_id in seen.keys() - found.keys():
                if topic := self._topics.pop(job_id, None):
                    topic.fail(unknown("job", job_id))
            await asyncio.sleep(INTERVAL_S)

    def _look(self, seen: Mapping[str, Head | None]) -> dict[str, tuple[Head, Sequence[StoredEvent]]]:
        """Where each job stands now, and its new events, the last page of them at most."""
        found: dict[str, tuple[Head, Sequence[StoredEvent]]] = {}
        for job_id, head in self._jobs.heads(seen).items():
            before = seen[job_id]
            events: Sequence[StoredEvent] = ()
            if before and head.last_sequence > before.last_sequence:
                begin = max(before.last_sequence, head.last_sequence - PAGE_EVENTS)
                with suppress(NotReady):  # removed already: who still wants them hears of that
                    events = self._jobs.events_after(job_id, begin, limit=head.last_sequence - begin)
            found[job_id] = head, events
        return found

    def _stopped(self, poller: asyncio.Task[None]) -> None:
        """Hand on what ended the poller: who watched through it comes again, to a new one."""
        error = None if poller.cancelled() else poller.exception()
        if error:
            topics, self._topics = self._topics, {}
            for topic in topics.values():
                topic.fail(error)
