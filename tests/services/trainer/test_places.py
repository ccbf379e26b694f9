"""Who gives his place on a full worker to whom."""

from __future__ import annotations

from collections import Counter

from services.trainer.database.claims import Waiting
from services.trainer.jobs import Job
from services.trainer.places import to_send_away
from tests.services.trainer.test_savepoints import JOB


def job(name: str, tenant: str, user_id: str, priority: int = 0) -> Job:
    return JOB.model_copy(update={"job_id": name, "tenant": tenant, "user_id": user_id, "priority": priority})


def chosen(jobs: list[Job], tenant: str, user_id: str, priority: int = 0, *, active: int = 0) -> str | None:
    """Who is sent away for a job of this user, of whose tenant and user so many are active elsewhere."""
    tenants = Counter(each.tenant for each in jobs)
    users = Counter((each.tenant, each.user_id) for each in jobs)
    waiting = Waiting(
        job_id="waiting",
        tenant=tenant,
        user_id=user_id,
        priority=priority,
        suspect=False,
        tenant_active=tenants[tenant] + active,
        user_active=users[tenant, user_id] + active,
    )
    found = to_send_away(waiting, jobs, tenants, users)
    return found.job_id if found else None


BIG = [job(f"big-{number}", "t", "big") for number in range(4)]


def test_user_without_a_job_gets_the_place_of_the_longest_there_of_who_has_most() -> None:
    assert chosen(BIG, "t", "small") == "big-0"
    assert chosen([job("x", "t", "other"), *BIG[:2]], "t", "small") == "big-0"


def test_tenant_without_a_job_gets_a_place_from_the_one_who_has_most() -> None:
    assert chosen([job("a", "one", "u"), job("b", "one", "u"), job("c", "two", "u")], "three", "u") == "a"


def test_who_has_as_much_after_it_as_the_other_before_gets_nothing() -> None:
    assert chosen(BIG[:2], "t", "small", active=1) is None
    assert chosen([job("a", "one", "u"), job("b", "two", "u")], "three", "u") is None


def test_own_jobs_wait_for_each_other() -> None:
    assert chosen(BIG, "t", "big") is None


def test_higher_priority_gets_the_place_of_the_lowest_in_its_tenant() -> None:
    jobs = [job("a", "t", "u", 5), job("b", "t", "u", -1), job("c", "t", "u", 0)]
    assert chosen(jobs, "t", "u", 10) == "b"
    assert chosen([job("a", "one", "u", -5)], "two", "u", 100) is None
    assert chosen([job("a", "t", "x", 5), job("b", "t", "x", 5)], "t", "u", 0) is None
