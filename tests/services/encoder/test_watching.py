"""However many watch a dataset, the store is read as for one, and each of them sees its states in order, to the end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import aclosing
from itertools import pairwise
from typing import Any, TypeVar

import pytest
from fluxsmith.v1 import encoder_pb2 as pb

from services.common.errors import NotFound
from services.common.fields import unknown
from services.common.object_store import ObjectStore
from services.common.settings import ServiceSettings
from services.encoder import watching
from services.encoder.datasets import Datasets
from services.encoder.encoding import DatasetEncoder
from services.encoder.models import ModelThread
from services.encoder.runs import EncodingRuns
from services.encoder.servicer import EncoderServicer
from services.encoder.settings import EncoderSettings
from services.encoder.watching import DatasetWatching, Seen, Stage
from services.stack import Stack
from tests.services.encoder.conftest import OPTIONS, AddSample

READY = pb.DATASET_STATE_READY
T = TypeVar("T")


class CountingStore(ObjectStore):
    """Counts what it is asked for."""

    asked = 0

    def _patiently(self, action: Callable[[], T]) -> T:
        self.asked += 1
        return super()._patiently(action)


State = tuple[Stage, int]


class Script:
    """A dataset as a test sets it: its stage, and how many samples it has. Unless `free`, no reading ends."""

    def __init__(self) -> None:
        self.stage = Stage.OPEN
        self.sample_count = self.reads = 0
        self.error: Exception | None = None
        self.free = threading.Event()
        self.free.set()

    def read(self, tenant: str, dataset_id: str) -> Seen[State]:
        del tenant, dataset_id
        self.reads += 1
        stage, count, error = self.stage, self.sample_count, self.error
        self.free.wait(30)
        if error:
            raise error
        return Seen(stage=stage, dataset=(stage, count))

    async def has_read(self, *, sample_count: int) -> None:
        """Have so many samples, and wait until that has been read."""
        self.sample_count, before = sample_count, self.reads
        await until(lambda: self.reads > before + 1)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "INTERVAL_S", 0.01)
    monkeypatch.setattr(watching, "IDLE_INTERVAL_S", 0.02)


@pytest.fixture
def counting(store_stack: Stack) -> CountingStore:
    """The object store, with a count of its own."""
    return CountingStore(store_stack.store_settings)


@pytest.fixture
def servicer(
    counting: CountingStore, model_thread: ModelThread, service_settings: ServiceSettings
) -> Iterator[EncoderServicer]:
    """The encoder's RPCs on real parts."""
    datasets, settings = Datasets(counting), EncoderSettings()
    encoder = DatasetEncoder(datasets, model_thread, settings)
    runs = EncodingRuns(datasets, encoder)
    servicer = EncoderServicer(
        datasets=datasets, runs=runs, encoder=encoder, models=model_thread, service=service_settings, settings=settings
    )
    yield servicer
    servicer.close()
    runs.close()
    datasets.close()


def run(doing: Coroutine[Any, Any, T]) -> T:
    """The outcome; who waits for what never comes fails."""

    async def in_time() -> T:
        async with asyncio.timeout(60):
            return await doing

    return asyncio.run(in_time())


async def states(watched: DatasetWatching[T], dataset_id: str = "ds", tenant: str = "t") -> list[T]:
    """Everything that a watcher sees."""
    async with aclosing(watched.states(tenant, dataset_id)) as seen:
        return [dataset async for dataset in seen]


async def until(happened: Callable[[], bool]) -> None:
    while not happened():
        await asyncio.sleep(0.005)


def test_three_hundred_idle_watchers_read_the_store_as_one_does(
    servicer: EncoderServicer, counting: CountingStore, tenant: str, dataset_id: str
) -> None:
    watched = servicer._watching

    async def count() -> tuple[int, int]:
        watchers = [watched.states(tenant, dataset_id) for _ in range(300)]
        await asyncio.gather(*(anext(watcher) for watcher in watchers))
        waiting = [asyncio.ensure_future(anext(watcher)) for watcher in watchers]
        (topic,) = watched._topics.values()
        assert topic.watchers == 300
        await asyncio.sleep(0)
        asked, begun = counting.asked, topic.begun
        await until(lambda: topic.done >= begun + 5)
        asked, readings = counting.asked - asked, topic.begun - begun
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return asked, readings

    counting.asked = 0
    servicer._read_dataset(tenant, dataset_id)
    a_reading = counting.asked
    asked, readings = run(count())
    assert asked <= a_reading * (readings + 1)


def test_every_watcher_of_an_encoding_sees_its_states_in_order_to_the_end(
    servicer: EncoderServicer, tenant: str, dataset_id: str, add_sample: AddSample
) -> None:
    for number in range(6):
        add_sample(f"{number}", seed=number)

    async def watch() -> list[list[pb.Dataset]]:
        watchers = [asyncio.ensure_future(states(servicer._watching, dataset_id, tenant)) for _ in range(20)]
        await until(lambda: bool(servicer._watching._topics))
        await asyncio.to_thread(servicer._runs.start, tenant, dataset_id, OPTIONS)
        return await asyncio.gather(*watchers)

    for seen in run(watch()):
        assert (seen[-1].state, seen[-1].encoded_count) == (READY, 6)
        order = [(state.state == READY, state.progress.done_count) for state in seen]
        assert order[:-1] == sorted(order[:-1])
        assert all(one != other for one, other in pairwise(seen))


def test_watcher_that_does_not_read_gets_the_newest_state_and_the_last_one() -> None:
    script = Script()
    watched = DatasetWatching(script.read)

    async def watch() -> list[int]:
        seen = watched.states("t", "ds")
        first = await anext(seen)
        for number in range(1, 51):
            await script.has_read(sample_count=number)
        second = await anext(seen)
        script.stage = Stage.ENDED
        await until(lambda: not watched._topics)
        script.stage, script.sample_count = Stage.OPEN, 99  # of after the end: not this watcher's any more
        return [count for _, count in [first, second, *[state async for state in seen]]]

    assert run(watch()) == [0, 50, 50]


def test_watcher_sees_nothing_that_was_read_before_it_came() -> None:
    script = Script()
    watched = DatasetWatching(script.read)

    async def watch() -> list[Stage]:
        script.stage = Stage.ENDED
        script.free.clear()
        early = asyncio.ensure_future(states(watched))
        await until(lambda: script.reads == 1)  # it has read READY, and is on its way
        script.stage = Stage.OPEN  # a sample has come
        late = watched.states("t", "ds")
        first_of_late = asyncio.ensure_future(anext(late))
        await asyncio.sleep(0)
        script.free.set()
        seen = [(await early)[-1], await first_of_late]
        await late.aclose()
        return [stage for stage, _ in seen]

    assert run(watch()) == [Stage.ENDED, Stage.OPEN]


def test_open_after_encoding_ends_who_saw_it_and_not_who_came_later() -> None:
    script = Script()
    watched = DatasetWatching(script.read)

    async def watch() -> list[list[Stage]]:
        script.stage = Stage.ENCODING
        early = asyncio.ensure_future(states(watched))
        await until(lambda: script.reads > 1)
        script.stage = Stage.OPEN
        late = asyncio.ensure_future(states(watched))
        seen = [[stage for stage, _ in await early]]
        await until(lambda: bool(watched._topics))
        script.stage = Stage.ENDED
        return [*seen, [stage for stage, _ in await late]]

    assert run(watch()) == [[Stage.ENCODING, Stage.OPEN], [Stage.OPEN, Stage.ENDED]]


def test_a_deleted_dataset_is_told_to_all_and_nothing_is_left() -> None:
    script = Script()
    watched = DatasetWatching(script.read)

    async def watch() -> list[list[State] | BaseException]:
        watchers = [asyncio.ensure_future(states(watched)) for _ in range(5)]
        await until(lambda: script.reads > 1)
        script.error = unknown("dataset", "ds")
        told = await asyncio.gather(*watchers, return_exceptions=True)
        await asyncio.sleep(0)
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("watching")]
        return told

    assert all(isinstance(error, NotFound) for error in run(watch()))
    assert not watched._topics


def test_the_last_to_leave_ends_the_poller() -> None:
    script = Script()
    watched = DatasetWatching(script.read)

    async def watch() -> None:
        seen = [watched.states("t", "ds") for _ in range(3)]
        for each in seen:
            await anext(each)
        (topic,) = watched._topics.values()
        for each in seen:
            await each.aclose()
        await until(lambda: topic.poller is not None and topic.poller.done())

    run(watch())
    assert not watched._topics


def test_readings_of_many_datasets_leave_threads_for_others() -> None:
    at_once, most = 0, 0
    counting, free = threading.Lock(), threading.Event()

    def read(tenant: str, dataset_id: str) -> Seen[State]:
        nonlocal at_once, most
        del tenant, dataset_id
        with counting:
            at_once += 1
            most = max(most, at_once)
        free.wait(0.02)
        with counting:
            at_once -= 1
        return Seen(stage=Stage.ENDED, dataset=(Stage.ENDED, 0))

    watched = DatasetWatching(read)

    async def end_of(number: int) -> list[State]:
        return [state async for state in watched.states("t", f"ds-{number}")]

    async def watch() -> list[list[State]]:
        return list(await asyncio.gather(*map(end_of, range(12))))

    assert run(watch()) == [[(Stage.ENDED, 0)]] * 12
    assert most == 2
