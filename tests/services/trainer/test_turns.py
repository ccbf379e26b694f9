"""Turns on one base: one at a time, fair, without starvation, and left cleanly however a job ends."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from services.trainer.turns import Turn, Turns

SLICE_S = 0.02


class CancelJob(Exception):
    """What a check raises in these tests."""


class Base:
    """Stands for the base: knows whose adapter is on it, and fails when two are."""

    def __init__(self) -> None:
        self.adapter: object = None
        self.swaps = 0

    def put(self, owner: object) -> None:
        assert self.adapter is None, "two adapters on one base"
        self.adapter = owner

    def take(self, owner: object) -> None:
        assert self.adapter is owner
        self.adapter = None


@dataclass(eq=False)
class Job:
    """A job of these tests; it is its own swap."""

    base: Base
    turn: Turn
    error: BaseException | None = None
    out_error: Exception | None = None
    back_error: Exception | None = None
    steps: list[float] = field(default_factory=list)

    def out(self) -> None:
        self.base.swaps += 1
        self.base.take(self)
        if self.out_error:
            raise self.out_error

    def back(self) -> None:
        if self.back_error:
            raise self.back_error
        self.base.put(self)

    def run(self, work: Callable[[Job], None]) -> None:
        """Attach, work, take off what is on: as a worker's thread does."""
        try:
            with self.turn.hold(self):
                self.base.put(self)
                try:
                    work(self)
                finally:
                    if self.base.adapter is self:
                        self.base.take(self)
        except BaseException as error:  # noqa: BLE001 - for the test to look at
            self.error = error

    def step(self, seconds: float) -> None:
        """Use the base: nobody else's adapter may be on it meanwhile."""
        assert self.base.adapter is self
        time.sleep(seconds)
        assert self.base.adapter is self
        self.steps.append(time.monotonic())


class Place:
    """Turns, the base that they are on, and the threads of the jobs."""

    def __init__(self, slice_s: float = SLICE_S) -> None:
        self.turns, self.base = Turns(slice_s), Base()
        self.threads: list[threading.Thread] = []
        self.jobs: list[Job] = []

    def start(
        self, work: Callable[[Job], None], tenant: str = "t", user: str = "u", check: Callable[[], None] = lambda: None
    ) -> Job:
        job = Job(self.base, self.turns.join(tenant, user, check))
        thread = threading.Thread(target=job.run, args=(work,), daemon=True)
        self.threads.append(thread)
        self.jobs.append(job)
        thread.start()
        return job

    def join(self) -> None:
        """Wait for all, who must end by themselves with the base as it was."""
        for thread in self.threads:
            thread.join(60)
            assert not thread.is_alive(), "a job starves"
        assert self.base.adapter is None
        assert not self.turns._all.children

    def waits_for(self, wanting: int) -> None:
        """Until so many jobs have the base or wait for it."""
        until(lambda: self.turns._all.wanting == wanting)


def until(condition: Callable[[], object]) -> None:
    """Wait for it, with patience."""
    deadline_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def steps_until(stop: threading.Event) -> Callable[[Job], None]:
    """Work of 1 ms steps until told to end."""

    def work(job: Job) -> None:
        while not stop.is_set():
            job.step(0.001)
            job.turn.pass_on()

    return work


def hog(go_on: threading.Event) -> Callable[[Job], None]:
    """Work that has the base and does not pass it on until told."""

    def work(_: Job) -> None:
        go_on.wait(30)

    return work


def fail(error: BaseException) -> None:
    """Raise in a lambda."""
    raise error


@pytest.mark.parametrize("seed", range(4))
def test_there_is_never_a_second_one_on_the_base_and_nobody_starves(seed: int) -> None:
    draw, place = random.Random(seed), Place(slice_s=0.004)  # noqa: S311 - not for secrets

    def work(job: Job) -> None:
        own = random.Random(draw.random())  # noqa: S311
        for _ in range(60):
            job.step(own.uniform(0, 0.002))
            if own.random() < 0.2:
                with job.turn.apart():
                    time.sleep(own.uniform(0, 0.004))
            job.turn.pass_on()
            if own.random() < 0.01:
                raise CancelJob

    for number in range(8):
        place.start(work, tenant=f"t{number % 2}", user=f"u{number % 3}", check=lambda: maybe_cancel(draw))
    place.join()
    assert {type(job.error) for job in place.jobs} <= {type(None), CancelJob}
    assert place.base.swaps


def maybe_cancel(draw: random.Random) -> None:
    """Now and then a job is cancelled while it waits."""
    if draw.random() < 0.02:
        raise CancelJob


def test_jobs_of_one_user_have_the_base_equally_long_but_for_a_slice() -> None:
    place, stop = Place(), threading.Event()
    for _ in range(3):
        place.start(steps_until(stop))
    time.sleep(0.6)
    served_s = [job.turn.served_s for job in place.jobs]
    stop.set()
    place.join()
    assert sum(served_s) > 0.4
    longest_step_s = max(b - a for job in place.jobs for a, b in zip(job.steps, job.steps[1:], strict=False))
    assert max(served_s) - min(served_s) < 2 * (SLICE_S + min(longest_step_s, SLICE_S))


def test_tenants_share_alike_then_users_then_jobs() -> None:
    place, stop = Place(slice_s=0.01), threading.Event()
    hold = steps_until(stop)
    alone = place.start(hold, "small", "u")
    single = place.start(hold, "large", "single")
    several = [place.start(hold, "large", "several") for _ in range(2)]
    time.sleep(1.2)
    total_s = sum(job.turn.served_s for job in place.jobs)
    shares = [round(job.turn.served_s / total_s, 2) for job in (alone, single, *several)]
    stop.set()
    place.join()
    assert shares == pytest.approx([0.5, 0.25, 0.125, 0.125], abs=0.1)


def test_who_is_alone_is_never_swapped_and_keeps_the_base() -> None:
    place = Place(slice_s=0.001)

    def work(job: Job) -> None:
        for _ in range(20):
            job.step(0.002)
            job.turn.pass_on()

    job = place.start(work)
    place.join()
    assert (job.error, place.base.swaps) == (None, 0)


def test_newcomer_has_its_first_turn_after_the_slice_that_is_under_way() -> None:
    place, stop = Place(), threading.Event()
    old = [place.start(steps_until(stop)) for _ in range(4)]
    until(lambda: all(len(job.steps) > 30 for job in old))
    new = place.start(steps_until(stop))
    place.waits_for(5)
    came_s = time.monotonic()
    until(lambda: new.steps)
    between = [any(came_s < step_s < new.steps[0] for step_s in job.steps) for job in old]
    stop.set()
    place.join()
    assert sum(between) <= 2  # the one under way, and one granted while the new one came


def test_newcomer_does_not_catch_up_with_what_others_had_before_it_came() -> None:
    place, stop = Place(slice_s=0.01), threading.Event()
    old = place.start(steps_until(stop))
    time.sleep(0.4)
    new = place.start(steps_until(stop))
    until(lambda: new.steps)
    old_s, new_s = old.turn.served_s, new.turn.served_s
    time.sleep(0.4)
    gained = (old.turn.served_s - old_s, new.turn.served_s - new_s)
    stop.set()
    place.join()
    assert gained[0] == pytest.approx(gained[1], abs=0.2)


def test_absence_earns_nothing() -> None:
    place, stop, away = Place(slice_s=0.01), threading.Event(), threading.Event()
    there = place.start(steps_until(stop))

    def leave_first(job: Job) -> None:
        job.step(0.001)
        with job.turn.apart():
            away.wait(30)
        steps_until(stop)(job)

    back = place.start(leave_first)
    time.sleep(0.4)
    away.set()
    before = len(back.steps)
    until(lambda: len(back.steps) > before)
    there_s, back_s = there.turn.served_s, back.turn.served_s
    time.sleep(0.4)
    gained = (there.turn.served_s - there_s, back.turn.served_s - back_s)
    stop.set()
    place.join()
    assert gained[0] == pytest.approx(gained[1], abs=0.2)


def test_stream_of_short_jobs_does_not_hold_up_a_long_one() -> None:
    place, stop = Place(slice_s=0.005), threading.Event()
    long = place.start(steps_until(stop))
    until(lambda: long.steps)
    before = len(long.steps)
    for _ in range(40):  # there is always one or two that had no turn yet
        until(lambda: place.turns._all.wanting <= 2)
        place.start(lambda job: job.step(0.004))
    gained = len(long.steps) - before
    stop.set()
    place.join()
    assert gained > 30


def test_job_that_is_apart_keeps_its_adapter_on_until_somebody_comes() -> None:
    place, go_on = Place(), threading.Event()

    def wait_apart(job: Job) -> None:
        with job.turn.apart():
            go_on.wait(30)
        job.step(0)

    first = place.start(wait_apart)
    place.waits_for(0)
    until(lambda: place.base.adapter is first)
    assert place.base.swaps == 0
    second = place.start(lambda job: job.step(0.001))
    place.threads[1].join(30)
    assert (second.error, place.base.swaps, place.base.adapter) == (None, 1, None)
    go_on.set()
    place.join()
    assert first.error is None


def test_alone_being_apart_swaps_nothing() -> None:
    place = Place()

    def work(job: Job) -> None:
        with job.turn.apart():
            pass
        job.step(0)

    assert place.start(work).error is None
    place.join()
    assert place.base.swaps == 0


def test_job_that_is_cancelled_while_it_waits_ends_without_the_base() -> None:
    place, stop, cancelled = Place(), threading.Event(), threading.Event()
    outside: list[bool] = []

    def work(job: Job) -> None:
        try:
            steps_until(stop)(job)
        finally:
            outside.append(place.base.adapter is not job)

    waiting = place.start(work, check=lambda: fail(CancelJob()) if cancelled.is_set() else None)
    until(lambda: waiting.steps)
    hog_may_go = threading.Event()
    place.start(hog(hog_may_go))
    until(lambda: place.base.adapter is place.jobs[1])
    cancelled.set()
    place.threads[0].join(30)
    assert isinstance(waiting.error, CancelJob)
    assert outside == [True]
    assert place.base.adapter is place.jobs[1]
    hog_may_go.set()
    place.join()


def test_job_that_is_cancelled_before_its_first_turn_never_has_one() -> None:
    place, go_on = Place(), threading.Event()
    place.start(hog(go_on))
    until(lambda: place.base.adapter)
    second = place.start(lambda job: job.step(0), check=lambda: fail(CancelJob()))
    place.threads[1].join(30)
    assert (type(second.error), second.steps) == (CancelJob, [])
    go_on.set()
    place.join()


@pytest.mark.parametrize("taken", [True, False])
def test_job_that_fails_while_apart_ends_at_once(taken: bool) -> None:
    place, go_on, came = Place(), threading.Event(), threading.Event()
    still_on: list[bool] = []

    def work(job: Job) -> None:
        try:
            with job.turn.apart():
                came.wait(30)
                raise CancelJob
        finally:
            still_on.append(place.base.adapter is job)

    first = place.start(work)
    place.waits_for(0)
    until(lambda: place.base.adapter is first)
    if taken:
        place.start(hog(go_on))
        until(lambda: place.base.adapter is place.jobs[1])
    came.set()
    place.threads[0].join(30)
    assert isinstance(first.error, CancelJob)
    assert still_on == [not taken]
    go_on.set()
    place.join()


@pytest.mark.parametrize("where", ["out_error", "back_error"])
def test_swap_without_memory_fails_only_the_job_whose_it_is(where: str) -> None:
    place, stop = Place(slice_s=0.005), threading.Event()
    poor = place.start(steps_until(stop))
    setattr(poor, where, MemoryError("no room"))
    until(lambda: poor.steps)
    other = place.start(steps_until(stop))
    place.threads[0].join(30)
    before = len(other.steps)
    until(lambda: len(other.steps) > before + 10)
    stop.set()
    place.join()
    assert (type(poor.error), other.error) == (MemoryError, None)


def test_thread_that_dies_with_the_base_blocks_nobody() -> None:
    place = Place()
    turn = place.turns.join("t", "u")
    dead = Job(place.base, turn)

    def take_and_die() -> None:
        kept_open.append(turn.hold(dead))
        kept_open[0].__enter__()
        place.base.put(dead)

    kept_open: list = []  # type: ignore[type-arg]
    thread = threading.Thread(target=take_and_die)
    thread.start()
    thread.join()
    living = place.start(lambda job: job.step(0.001))
    place.threads[0].join(30)
    assert (living.error, len(living.steps)) == (None, 1)


def test_served_seconds_grow_while_the_base_is_had_and_only_then() -> None:
    place, phase = Place(), threading.Barrier(2)

    def work(job: Job) -> None:
        for _ in range(2):
            phase.wait(30)
        with job.turn.apart():
            for _ in range(2):
                phase.wait(30)

    job = place.start(work)
    phase.wait(30)
    started_s = job.turn.served_s
    time.sleep(0.05)
    assert job.turn.served_s >= started_s + 0.05
    phase.wait(30)
    phase.wait(30)
    apart_s = job.turn.served_s
    time.sleep(0.05)
    assert job.turn.served_s == apart_s
    phase.wait(30)
    place.join()
