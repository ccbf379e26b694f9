"""Whoever watches a job gets each of its events once, however often the stream breaks and however many watch."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, TypeVar

import grpc
import pytest
from fluxsmith.v1 import trainer_pb2 as pb
from fluxsmith.v1 import trainer_pb2_grpc
from sqlalchemy import delete

from services.common.errors import NotFound, NotReady
from services.common.object_store import ObjectStore
from services.common.server import SERVER_OPTIONS, interceptors
from services.common.settings import ServiceSettings
from services.trainer import watching
from services.trainer.config import TrainConfig
from services.trainer.database.job_store import JobStore
from services.trainer.database.tables import events
from services.trainer.database.tables import jobs as job_rows
from services.trainer.jobs import DatasetReference, Job, JobState, JobWarning, NewJob
from services.trainer.servicer import TrainerServicer
from services.trainer.settings import TrainerSettings
from services.trainer.watching import Watching

NEW = NewJob(dataset=DatasetReference(dataset_id="ds-1"), config=TrainConfig(steps=1))
Stub = trainer_pb2_grpc.TrainerServiceStub
T = TypeVar("T")


def run(watching_of_jobs: Coroutine[Any, Any, T]) -> T:
    """What somebody sees; who waits for what never comes fails."""

    async def in_time() -> T:
        async with asyncio.timeout(60):
            return await watching_of_jobs

    return asyncio.run(in_time())


def claimed(jobs: JobStore) -> Job:
    """A job of the default tenant that a worker has: two events."""
    jobs.create("default", NEW)
    job = jobs.claims.claim("w", lease_s=60, max_attempts=3)
    assert job
    return job


def add(jobs: JobStore, job: Job, count: int) -> None:
    """Write so many more events of the job."""
    jobs.claims.append(job, [JobWarning(reason="R", message="m")] * count)


def end(jobs: JobStore, job: Job) -> int:
    """End the job; return the sequence of its last event."""
    jobs.claims.finish(job, JobState.FAILED)
    return jobs.get(job.tenant, job.job_id).last_sequence


async def sequences(watched: Watching, job: Job, after: int = 0) -> list[int]:
    """What somebody sees who watches to the end."""
    async with aclosing(watched.events(job.job_id, after)) as events:
        return [event.sequence async for event in events]


@asynccontextmanager
async def serving(jobs: JobStore, store: ObjectStore, service: ServiceSettings) -> AsyncIterator[Stub]:
    """The trainer's RPCs on a port of this process, and a stub for them."""
    server = grpc.aio.server(interceptors=interceptors(), options=SERVER_OPTIONS)
    servicer = TrainerServicer(jobs=jobs, objects=store, service=service, settings=TrainerSettings())
    trainer_pb2_grpc.add_TrainerServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Stub(channel)
    finally:
        await server.stop(None)


async def restless(stub: Stub, job: Job, chance: random.Random) -> list[int]:
    """What a client sees that breaks its streams again and again, and goes on after what it saw last."""
    seen: list[int] = []
    while True:
        request = pb.WatchTrainingJobRequest(job_id=job.job_id, after_sequence=seen[-1] if seen else 0)
        stream: Any = stub.WatchTrainingJob(request)
        left = chance.randrange(1, 30)
        async for response in stream:
            seen.append(response.event.sequence)
            left -= 1
            if not left:
                stream.cancel()
                break
        else:
            return seen


def working() -> list[str]:
    """The tasks under way, but for this one and those in which the server waits for calls."""
    names = [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks() - {asyncio.current_task()}]
    return [name for name in names if not name.startswith(("AioServer._request", "AioServer._server_main"))]


async def until(met: Callable[[], bool]) -> None:
    """Wait for something that comes soon."""
    for _ in range(600):
        if met():
            return
        await asyncio.sleep(0.05)
    assert met()


def test_reconnect_storm_loses_and_repeats_nothing_and_others_are_answered(
    job_store: JobStore, store: ObjectStore, service_settings: ServiceSettings
) -> None:
    jobs = [claimed(job_store) for _ in range(5)]
    waits_s: list[float] = []

    def write() -> list[int]:
        for _ in range(10):
            for job in jobs:
                add(job_store, job, random.randrange(1, 12))  # noqa: S311
        return [end(job_store, job) for job in jobs]

    async def ask(stub: Any) -> None:
        while True:
            begin_s = time.monotonic()
            await stub.GetTrainingJob(pb.GetTrainingJobRequest(job_id=jobs[0].job_id))
            waits_s.append(time.monotonic() - begin_s)
            await asyncio.sleep(0.05)

    async def storm() -> tuple[list[list[int]], list[int]]:
        async with serving(job_store, store, service_settings) as stub:
            asking = asyncio.create_task(ask(stub))
            watchers = [restless(stub, jobs[number % 5], random.Random(number)) for number in range(200)]  # noqa: S311
            *seen, lasts = await asyncio.gather(*watchers, asyncio.to_thread(write))
            asking.cancel()
            with suppress(asyncio.CancelledError):
                await asking
            await until(lambda: not working())
        return seen, lasts

    seen, lasts = run(storm())
    for number, sequence in enumerate(seen):
        assert sequence == list(range(1, lasts[number % 5] + 1))
    assert len(waits_s) > 5
    assert sorted(waits_s)[len(waits_s) // 2] < 5
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("asyncio")]


def test_watchers_share_one_poller_that_reads_events_once(job_store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    job, other = claimed(job_store), claimed(job_store)
    pages: list[Sequence[int]] = []
    read = job_store.events_after

    def counted(job_id: str, sequence: int, *, limit: int = 200) -> Any:
        found = read(job_id, sequence, limit=limit)
        pages.append([event.sequence for event in found])
        return found

    monkeypatch.setattr(job_store, "events_after", counted)

    seen: list[list[int]] = [[] for _ in range(21)]

    async def follow(watched: Watching, number: int) -> None:
        async with aclosing(watched.events((job if number < 20 else other).job_id, 0)) as stream:
            async for event in stream:
                seen[number].append(event.sequence)

    async def watch() -> None:
        watched = Watching(job_store)
        watchers = [asyncio.create_task(follow(watched, number)) for number in range(21)]
        await until(
            lambda: all(topic.head for topic in watched._topics.values()) and all(len(each) == 2 for each in seen)
        )
        assert len([task for task in asyncio.all_tasks() if task.get_name() == "watching"]) == 1
        pages.clear()
        for step in (lambda: add(job_store, job, 30), lambda: end(job_store, job), lambda: end(job_store, other)):
            await asyncio.to_thread(step)
        await asyncio.gather(*watchers)

    run(watch())
    assert seen == [list(range(1, 34))] * 20 + [[1, 2, 3]]
    assert sorted(number for page in pages for number in page) == sorted([*range(3, 34), 3])


def test_who_is_far_behind_reads_pages_and_holds_no_more_than_one(job_store: JobStore) -> None:
    job = claimed(job_store)
    add(job_store, job, 3)

    async def watch() -> list[int]:
        watched = Watching(job_store)
        slow = watched.events(job.job_id, 0)
        seen = [(await anext(slow)).sequence]
        quick = asyncio.create_task(sequences(watched, job))
        for _ in range(5):
            await asyncio.to_thread(add, job_store, job, 300)
            await asyncio.sleep(0.15)
        [topic] = watched._topics.values()
        assert len(topic.recent) <= watching.PAGE_EVENTS
        await asyncio.to_thread(end, job_store, job)
        assert await quick == list(range(1, 1507))
        return [*seen, *[event.sequence async for event in slow]]

    assert run(watch()) == list(range(1, 1507))


@pytest.mark.parametrize("after", [0, 2, 3, 99])
def test_watching_an_ended_job_ends(job_store: JobStore, after: int) -> None:
    job = claimed(job_store)
    last = end(job_store, job)

    async def watch() -> list[int]:
        return await sequences(Watching(job_store), job, after)

    assert run(watch()) == list(range(after + 1, last + 1))


def test_events_that_were_removed_are_told_as_such(job_store: JobStore) -> None:
    job = claimed(job_store)
    last = end(job_store, job)
    while not job_store.retention.remove_old(events_kept_days=1e-9):
        time.sleep(0.01)

    async def watch(after: int) -> list[int]:
        return await sequences(Watching(job_store), job, after)

    with pytest.raises(NotReady) as caught:
        run(watch(0))
    assert caught.value.reason == "EVENTS_REMOVED"
    assert run(watch(last - 1)) == [last]


def test_job_that_is_deleted_while_watched_is_not_found(job_store: JobStore) -> None:
    job = claimed(job_store)

    async def watch(watched: Watching) -> None:
        slow = watched.events(job.job_id, 0)
        await anext(slow)
        with job_store._database.writing() as connection:  # its end is never seen
            connection.execute(delete(events).where(events.c.job_id == job.job_id))
            connection.execute(delete(job_rows).where(job_rows.c.job_id == job.job_id))
        async for _ in slow:
            pass

    with pytest.raises(NotFound):
        run(watch(Watching(job_store)))


def test_database_that_fails_is_told_to_all_and_watching_goes_on_afterwards(
    job_store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = claimed(job_store)

    def broken(*_: object) -> Any:
        raise NotReady("away", reason="AWAY", remedy="wait")

    async def watch() -> list[int]:
        watched = Watching(job_store)
        watchers = [asyncio.create_task(sequences(watched, job)) for _ in range(3)]
        await asyncio.sleep(0.3)
        with monkeypatch.context() as patch:
            patch.setattr(job_store, "heads", broken)
            failed = await asyncio.gather(*watchers, return_exceptions=True)
        assert [getattr(error, "reason", "") for error in failed] == ["AWAY"] * 3
        again = asyncio.create_task(sequences(watched, job, 2))
        await asyncio.to_thread(end, job_store, job)
        return await again

    assert run(watch()) == [3]
