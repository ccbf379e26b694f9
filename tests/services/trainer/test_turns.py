"""Turns on one base: one at a time, without starvation, and left cleanly however a job ends."""

from __future__ import annotations

import random
import threading
import time

import pytest

from tests.services.trainer.turning import CancelJob, Job, Place, fail, hog, steps_until, until


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
    second = place.start(lambda job: job.step())
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


def test_job_that_fails_while_another_swaps_it_out_waits_for_the_end_of_that() -> None:
    place, swapping = Place(), threading.Event()

    class SlowlyOut(Job):
        def out(self) -> None:
            swapping.set()
            time.sleep(0.1)  # in which a job that did not wait would take off an adapter that is under way
            super().out()

    def work(job: Job) -> None:
        job.__class__ = SlowlyOut
        with job.turn.apart():
            swapping.wait(30)
            raise CancelJob

    first = place.start(work)
    place.waits_for(0)
    second = place.start(lambda job: job.step())
    place.join()
    assert isinstance(first.error, CancelJob)
    assert (second.error, len(second.steps)) == (None, 1)


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
    dead = Job(place.base, turn, place.clock)

    def take_and_die() -> None:
        kept_open.append(turn.hold(dead))
        kept_open[0].__enter__()
        place.base.put(dead)

    kept_open: list = []  # type: ignore[type-arg]
    thread = threading.Thread(target=take_and_die)
    thread.start()
    thread.join()
    living = place.start(lambda job: job.step())
    place.threads[0].join(30)
    assert (living.error, len(living.steps)) == (None, 1)


def test_urgent_job_is_next_after_the_step_that_is_under_way() -> None:
    place, stop = Place(slice_s=3600.0), threading.Event()
    running = place.start(steps_until(stop))
    until(lambda: running.steps)
    place.start(lambda job: job.step())
    place.waits_for(2)
    urgent = place.start(lambda job: job.step(), urgent=lambda: True)
    place.threads[2].join(60)
    stop.set()
    place.join()
    assert (urgent.error, len(urgent.steps)) == (None, 1)
    assert place.jobs[1].steps[0] > urgent.steps[0]
    assert place.turns._hurrying == []


def test_job_that_goes_on_after_an_exception_apart_has_the_base_again_by_then() -> None:
    place, go_on = Place(), threading.Event()

    def work(job: Job) -> None:
        try:
            with job.turn.apart(goes_on_after=(LookupError,)):
                go_on.wait(60)
                raise KeyError
        except KeyError:
            job.step()

    first = place.start(work)
    place.waits_for(0)
    second = place.start(lambda job: job.step())
    place.threads[1].join(60)
    assert place.base.swaps == 1
    go_on.set()
    place.join()
    assert (first.error, second.error, len(first.steps)) == (None, None, 1)
