"""Turns on one base are fair: among tenants, users and jobs, and to those who come, leave and come back."""

from __future__ import annotations

import threading

import pytest

from tests.services.trainer.turning import SLICE_S, STEP_S, Job, Place, steps_until

A_LITTLE = 1e-9


def test_jobs_of_one_user_have_the_base_equally_long_but_for_a_slice() -> None:
    place = Place()
    for _ in range(3):
        place.start(place.steps_to(0.6))
    place.go_together(3)
    served_s = [job.turn.served_s for job in place.jobs]
    assert sum(served_s) == pytest.approx(0.6)
    assert max(served_s) - min(served_s) <= SLICE_S + STEP_S + A_LITTLE


def test_turn_lasts_a_slice() -> None:
    place = Place()
    for _ in range(2):
        place.start(place.steps_to(0.4))
    place.go_together(2)
    assert place.base.swaps == pytest.approx(0.4 / SLICE_S, abs=2)


def test_tenants_share_alike_then_users_then_jobs() -> None:
    place = Place(slice_s=0.01)
    work = place.steps_to(1.0)
    place.start(work, "small", "u")
    place.start(work, "large", "single")
    for _ in range(2):
        place.start(work, "large", "several")
    place.go_together(4)
    assert [job.turn.served_s for job in place.jobs] == pytest.approx([0.5, 0.25, 0.125, 0.125], abs=0.02)


def test_newcomer_has_its_first_turn_after_the_slice_that_is_under_way() -> None:
    place = Place()
    for _ in range(4):
        place.start(place.steps_to(0.6))

    def come() -> None:
        place.start(place.steps_to(0.6))
        place.waits_for(5)

    place.clock.at(0.41, come)
    place.go_together(4)
    assert 0.41 < place.jobs[4].steps[0] <= 0.41 + SLICE_S + 2 * STEP_S


def test_newcomer_does_not_catch_up_with_what_others_had_before_it_came() -> None:
    place = Place(slice_s=0.01)
    place.start(place.steps_to(0.8))

    def come() -> None:
        place.start(place.steps_to(0.8))
        place.waits_for(2)

    place.clock.at(0.4, come)
    place.go_together(1)
    assert [job.turn.served_s for job in place.jobs] == pytest.approx([0.6, 0.2], abs=0.02)


def test_absence_earns_nothing() -> None:
    place, away = Place(slice_s=0.01), threading.Event()

    def leave_first(job: Job) -> None:
        with job.turn.apart():
            away.wait(60)
        place.steps_to(0.8)(job)

    def come_back() -> None:
        away.set()
        place.waits_for(2)

    place.clock.at(0.4, come_back)
    place.start(leave_first)
    place.waits_for(0)
    place.start(place.steps_to(0.8))
    place.go_together(1)
    assert [job.turn.served_s for job in place.jobs] == pytest.approx([0.2, 0.6], abs=0.02)


def test_stream_of_short_jobs_does_not_hold_up_a_long_one() -> None:
    place, stop = Place(slice_s=0.005), threading.Event()

    def short(job: Job) -> None:
        if len(place.jobs) < 40:
            place.start(short)
            place.waits_for(3)  # there is always one that had no turn yet
        else:
            stop.set()
        job.step(0.004)

    long = place.start(steps_until(stop))
    place.start(short)
    place.join()
    assert len(place.jobs) == 40
    assert long.turn.served_s > 0.3 * place.clock()


def test_who_is_alone_is_never_swapped_and_keeps_the_base() -> None:
    place = Place(slice_s=0.002)
    place.start(place.steps_to(0.04))
    place.go_together(1)
    assert place.base.swaps == 0


def test_served_seconds_grow_while_the_base_is_had_and_only_then() -> None:
    place, told_s = Place(), []

    def work(job: Job) -> None:
        for seconds in (0.0, 0.05):
            place.clock.go_on(seconds)
            told_s.append(job.turn.served_s)
        with job.turn.apart():
            place.clock.go_on(0.07)
            told_s.append(job.turn.served_s)
        place.clock.go_on(0.01)
        told_s.append(job.turn.served_s)

    place.start(work)
    place.join()
    assert place.jobs[0].error is None
    assert told_s == pytest.approx([0.0, 0.05, 0.05, 0.06])
