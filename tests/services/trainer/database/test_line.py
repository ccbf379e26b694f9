"""Who is next: tenants evenly, priorities within a tenant, its users evenly, then the oldest. On both databases."""

from __future__ import annotations

import random
import time
from collections import Counter, defaultdict
from collections.abc import Sequence

import pytest

from services.trainer.database.job_store import JobStore
from services.trainer.jobs import Job, JobState, Progress
from tests.services.trainer.database.conftest import Alter
from tests.services.trainer.database.test_job_store import EXPIRED_S, HELD_S, NEW, take

Tasks = Sequence[tuple[str, str, int]]


def queue(store: JobStore, *tasks: tuple[str, str, int]) -> list[Job]:
    """A job for each tenant, user and priority, in this order of time."""
    made = []
    for tenant, user_id, priority in tasks:
        made.append(store.create(tenant, NEW.model_copy(update={"user_id": user_id, "priority": priority})))
        time.sleep(0.002)  # the database's clock counts milliseconds
    return made


def run(store: JobStore, duration_s: float = 1.0) -> Job:
    """Serve the next job to its end."""
    job = take(store)
    store.claims.finish(job, JobState.CANCELLED, progress=Progress(step=1, total_steps=1, served_s=duration_s))
    return job


def claimed(store: JobStore, count: int) -> list[tuple[str, str, int]]:
    """Whose jobs the next ones are, all of them active at once."""
    return [(job.tenant, job.user_id, job.priority) for job in (take(store) for _ in range(count))]


def test_higher_priority_goes_first_within_a_tenant_only(job_store: JobStore) -> None:
    queue(job_store, ("s", "a", 0), ("t", "b", 1), ("t", "b", 9), ("t", "c", 5), ("t", "c", 9))
    order = claimed(job_store, 5)
    assert order[:2] == [("s", "a", 0), ("t", "b", 9)]
    assert order[2:] == [("t", "c", 9), ("t", "c", 5), ("t", "b", 1)]


def test_user_with_many_jobs_delays_nobody_elses_first(job_store: JobStore) -> None:
    queue(job_store, *[("t", "many", 0)] * 30)
    claimed(job_store, 2)
    queue(job_store, ("t", "few", 0), ("t", "few", 0))
    assert claimed(job_store, 4) == [("t", "few", 0), ("t", "few", 0), ("t", "many", 0), ("t", "many", 0)]


def test_tenant_with_many_users_gets_no_more_than_one_with_one(job_store: JobStore) -> None:
    queue(job_store, *[("large", f"u{number}", 0) for number in range(6)], *[("small", "u", 0)] * 6)
    assert Counter(tenant for tenant, _, _ in claimed(job_store, 6)) == {"large": 3, "small": 3}


@pytest.mark.parametrize("whose", ["users", "tenants"])
def test_time_served_is_even_to_within_one_job(job_store: JobStore, whose: str) -> None:
    counts, draw = {"a": 16, "b": 6, "c": 6}, random.Random(3)  # noqa: S311
    names = [name for name, count in counts.items() for _ in range(count)]
    queue(job_store, *[("t", name, 0) if whose == "users" else (name, "u", 0) for name in names])
    served, left, longest_s = defaultdict[str, float](float), Counter(names), 10.0
    while len(+left) == len(counts):  # while all of them want to be served
        duration_s = draw.uniform(1, longest_s)
        job = run(job_store, duration_s)
        name = job.user_id if whose == "users" else job.tenant
        left[name] -= 1
        served[name] += duration_s
        assert max(served.values()) - min(served[one] for one in counts) <= longest_s


def test_nobody_saves_up_time_by_asking_for_nothing(job_store: JobStore) -> None:
    queue(job_store, *[("t", "a", 0)] * 8)
    for _ in range(3):
        run(job_store, 100)
    queue(job_store, *[("t", "b", 0)] * 3, *[("other", "c", 0)] * 3)
    order = [run(job_store, 100) for _ in range(8)]
    assert Counter(job.tenant for job in order[:4]) == {"t": 2, "other": 2}
    assert Counter(job.user_id for job in order if job.tenant == "t") == {"a": 3, "b": 2}


def test_time_used_while_nobody_else_wanted_it_is_not_held_against_anyone(job_store: JobStore) -> None:
    queue(job_store, ("a", "u", 0))
    run(job_store, 1000)
    queue(job_store, *[("b", "u", 0)] * 3)
    queue(job_store, *[("a", "u", 0)] * 3)
    assert Counter(run(job_store, 10).tenant for _ in range(4)) == {"a": 2, "b": 2}


def test_paused_job_saves_up_nothing_either(job_store: JobStore) -> None:
    paused = queue(job_store, *[("a", "u", 0)] * 3, *[("b", "u", 0)] * 6)[:3]
    for job in paused:
        job_store.pause(job.tenant, job.job_id)
    for _ in range(3):
        run(job_store, 100)
    for job in paused:
        job_store.resume(job.tenant, job.job_id)
    assert Counter(run(job_store, 100).tenant for _ in range(4)) == {"a": 2, "b": 2}


@pytest.mark.parametrize("seed", [1, 2])
def test_queue_position_is_the_number_of_claims_that_come_before(job_store: JobStore, seed: int) -> None:
    draw = random.Random(seed)  # noqa: S311
    tasks: Tasks = [(draw.choice("st"), draw.choice("ab"), draw.choice((0, 0, 5))) for _ in range(12)]
    queue(job_store, *tasks)
    for _ in range(3):
        run(job_store, draw.uniform(1, 9))
    claimed(job_store, 2)
    take(job_store, lease_s=EXPIRED_S)
    waiting = [job for tenant in "st" for job in job_store.list(tenant, before=None, limit=99)]
    waiting = [job for job in waiting if job.state is JobState.QUEUED]
    places = {job.job_id: job_store.queue_position(job) for job in waiting}
    order = []
    while job := job_store.claims.claim("w", lease_s=HELD_S, max_attempts=3):
        order.append(job.job_id)
    assert len(order) == len(waiting) + 1
    assert {job_id: order.index(job_id) for job_id in places} == places


def test_job_that_does_not_wait_has_no_place(job_store: JobStore) -> None:
    first, second = queue(job_store, ("t", "a", 0), ("t", "a", 0))
    take(job_store)
    assert [job_store.queue_position(job) for job in (first, second)] == [0, 0]


def test_jobs_of_one_moment_have_places_of_their_own(job_store: JobStore, alter: Alter) -> None:
    tasks: Tasks = [(tenant, user, priority) for tenant in "st" for user in "ab" for priority in (0, 5, 0)]
    made = queue(job_store, *tasks)
    for job in made:
        alter(job.job_id, create_time_s=1.0)
    places = {job.job_id: job_store.queue_position(job) for job in made}
    assert {take(job_store).job_id: place for place in range(len(made))} == places
