"""Calls with a `request_id` act once, quotas hold however many ask at once, and deleted jobs stay deleted."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from services.common.errors import AlreadyExists, NotFound, NotReady, QuotaExceeded
from services.trainer.database.job_store import JobStore
from services.trainer.jobs import JobState
from tests.services.trainer.database.test_job_store import NEW, at_once, take

A, B = (NEW.model_copy(update={"user_id": user_id}) for user_id in "ab")


def test_thousand_creations_by_one_request_are_one_job(job_store: JobStore) -> None:
    with ThreadPoolExecutor(64) as threads:
        made = set(threads.map(lambda _: job_store.create("t", NEW, request_id="r").job_id, range(1000)))
    assert len(made) == len(job_store.list("t", before=None, limit=10)) == 1


def test_late_pause_does_not_undo_the_resumption(job_store: JobStore) -> None:
    job_id = job_store.create("t", NEW).job_id
    assert job_store.pause("t", job_id, request_id="p").state is JobState.PAUSED
    assert job_store.resume("t", job_id, request_id="r").state is JobState.QUEUED
    assert job_store.pause("t", job_id, request_id="p").state is JobState.QUEUED
    assert job_store.get("t", job_id).last_sequence == 3


def test_repeated_call_is_answered_though_the_job_has_moved_on(job_store: JobStore) -> None:
    job_store.create("t", NEW)
    job = take(job_store)
    job_store.request_checkpoint("t", job.job_id, request_id="c")
    job_store.cancel("t", job.job_id, request_id="x")
    job_store.claims.finish(job, JobState.CANCELLED)
    again = (
        job_store.request_checkpoint("t", job.job_id, request_id="c"),
        job_store.cancel("t", job.job_id, request_id="x"),
    )
    assert [one.state for one in again] == [JobState.CANCELLED] * 2


def test_request_id_of_another_call_job_or_detail_is_refused(job_store: JobStore) -> None:
    job_id, other = (job_store.create("t", NEW).job_id for _ in range(2))
    job_store.pause("t", job_id, request_id="p")
    job_store.cancel("t", other, request_id="x")
    calls: list[Callable[[], object]] = [
        lambda: job_store.resume("t", job_id, request_id="p"),
        lambda: job_store.pause("t", other, request_id="p"),
        lambda: job_store.cancel("t", other, request_id="x", discard_checkpoints=True),
        lambda: job_store.create("t", NEW, request_id="p"),
        lambda: job_store.created_by("t", "p"),
        lambda: job_store.require_ended("t", other, request_id="x"),
        lambda: job_store.delete("t", other, request_id="x"),
    ]
    for call in calls:
        with pytest.raises(AlreadyExists) as caught:
            call()
        assert caught.value.reason == "REQUEST_ID_REUSED"
    assert job_store.get("t", job_id).state is JobState.PAUSED
    assert job_store.get("t", other).state is JobState.CANCELLED


def test_refused_call_does_not_use_up_its_request_id(job_store: JobStore) -> None:
    job_id = job_store.create("t", NEW).job_id
    with pytest.raises(NotReady):
        job_store.request_checkpoint("t", job_id, request_id="c")
    take(job_store)
    job_store.request_checkpoint("t", job_id, request_id="c")
    assert job_store.pause("t", job_id, request_id="p").state is JobState.PAUSING


def test_job_deleted_again_is_no_error_but_one_that_never_was_is(job_store: JobStore) -> None:
    job_id = job_store.cancel("t", job_store.create("t", NEW).job_id).job_id
    assert job_store.require_ended("t", job_id)
    for _ in range(2):
        job_store.delete("t", job_id, request_id="d")
    job_store.delete("t", job_id)
    assert job_store.require_ended("t", job_id, request_id="d") is False
    for tenant, gone in (("t", "job-" + "0" * 20), ("other", job_id)):
        with pytest.raises(NotFound):
            job_store.delete(tenant, gone)
    with pytest.raises(NotFound):
        job_store.get("t", job_id)


def test_request_that_made_a_deleted_job_makes_no_second_one(job_store: JobStore) -> None:
    job_id = job_store.create("t", NEW, request_id="r").job_id
    job_store.cancel("t", job_id)
    job_store.delete("t", job_id)
    calls: list[Callable[[], object]] = [
        lambda: job_store.create("t", NEW, request_id="r"),
        lambda: job_store.created_by("t", "r"),
    ]
    for call in calls:
        with pytest.raises(NotReady, match=job_id) as caught:
            call()
        assert caught.value.reason == "JOB_DELETED"
    assert job_store.list("t", before=None, limit=10) == []


def test_user_and_tenant_have_so_many_unfinished_jobs_and_no_more(job_store: JobStore) -> None:
    create = partial(job_store.create, max_user_jobs=2, max_tenant_jobs=3)
    first = create("t", A, request_id="r")
    create("t", A)
    with pytest.raises(QuotaExceeded, match="2 unfinished") as caught:
        create("t", A)
    assert caught.value.reason == "USER_QUOTA"
    create("t", B)
    with pytest.raises(QuotaExceeded, match="3 unfinished") as caught:
        create("t", B)
    assert caught.value.reason == "TENANT_QUOTA"
    assert create("t", A, request_id="r") == first
    create("other", A)
    job_store.cancel("t", first.job_id)
    create("t", A)


def test_quota_holds_however_many_ask_at_once(job_store: JobStore) -> None:
    def create(number: int) -> bool:
        try:
            return bool(job_store.create("t", A, max_user_jobs=3, max_tenant_jobs=5))
        except QuotaExceeded:
            return False

    assert sum(map(bool, at_once(16, create))) == 3
    assert len(job_store.list("t", before=None, limit=100)) == 3
