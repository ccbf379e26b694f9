"""What time removes: events of jobs long ended, what is left of deleted jobs; and what it must not. Both databases."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from sqlalchemy import text, update

from services.common.errors import NotFound, NotReady
from services.trainer.database.job_store import JobStore
from services.trainer.database.tables import deletions
from services.trainer.jobs import ArtifactPublished, Job, JobState, JobWarning, Progress, StateChanged
from tests.services.trainer.database.conftest import Alter
from tests.services.trainer.database.test_job_store import ARTIFACT, NEW, RESULT, take
from tests.services.trainer.database.test_states import checkpoint

DAY_S = 24 * 3600.0


def succeeded(store: JobStore, warnings: int = 3) -> Job:
    """A job that has ended, with a file and so many warnings."""
    store.create("t", NEW)
    job = take(store)
    store.claims.append(job, [JobWarning(reason="R", message="m" * 1000)] * warnings)
    last = [ArtifactPublished(artifact=ARTIFACT)]
    store.claims.finish(job, JobState.SUCCEEDED, last_events=last, result=RESULT)
    return store.get("t", job.job_id)


def age(store: JobStore) -> None:
    """Make the deletions so far two months old."""
    with store._database.writing() as connection:
        connection.execute(update(deletions).values(time_s=time.time() - 60 * DAY_S))


def test_old_events_go_but_for_the_last_and_files_stay_known(job_store: JobStore, alter: Alter) -> None:
    job = succeeded(job_store)
    alter(job.job_id, end_time_s=time.time() - 31 * DAY_S)
    assert job_store.retention.remove_old(events_kept_days=30) == 1
    assert job_store.retention.remove_old(events_kept_days=30) == 0
    now = job_store.get("t", job.job_id)
    assert (now.first_sequence, now.last_sequence) == (job.last_sequence, job.last_sequence)
    left = job_store.events_after(job.job_id, job.last_sequence - 1)
    assert [stored.event for stored in left] == [StateChanged(state=JobState.SUCCEEDED)]
    assert job_store.artifacts(job.job_id) == {"lora.safetensors": ARTIFACT}


def test_reader_of_removed_events_is_told_where_to_go_on(job_store: JobStore, alter: Alter) -> None:
    job = succeeded(job_store)
    alter(job.job_id, end_time_s=0.0)
    job_store.retention.remove_old(events_kept_days=30)
    with pytest.raises(NotReady, match=job.job_id) as caught:
        job_store.events_after(job.job_id, 0)
    assert caught.value.reason == "EVENTS_REMOVED"
    assert f"after sequence {job.last_sequence - 1}" in caught.value.remedy
    assert job_store.events_after(job.job_id, job.last_sequence) == []


def test_events_of_young_and_unfinished_jobs_stay(job_store: JobStore, alter: Alter) -> None:
    young = succeeded(job_store)
    job_store.create("t", NEW)
    running = take(job_store)
    alter(running.job_id, create_time_s=0.0)
    assert job_store.retention.remove_old(events_kept_days=30) == 0
    alter(young.job_id, end_time_s=0.0)
    assert job_store.retention.remove_old(events_kept_days=0) == 0
    for job in (young, running):
        assert job_store.events_after(job.job_id, 0)[0].sequence == 1


def test_files_of_jobs_that_ended_before_they_were_written_down_stay_known(job_store: JobStore, alter: Alter) -> None:
    job = succeeded(job_store)
    alter(job.job_id, end_time_s=0.0, artifacts=None)
    job_store.retention.remove_old(events_kept_days=30)
    assert job_store.artifacts(job.job_id) == {"lora.safetensors": ARTIFACT}


def test_old_jobs_are_due_for_deletion(job_store: JobStore, alter: Alter) -> None:
    old, young = succeeded(job_store), succeeded(job_store)
    alter(old.job_id, end_time_s=time.time() - 8 * DAY_S)
    assert job_store.retention.due_for_deletion(jobs_kept_days=7) == [("t", old.job_id)]
    assert job_store.retention.due_for_deletion(jobs_kept_days=0) == []
    job_store.delete("t", old.job_id)
    assert job_store.retention.due_for_deletion(jobs_kept_days=7) == []
    assert job_store.get("t", young.job_id) == young


def test_deleted_job_is_forgotten_after_a_month(job_store: JobStore) -> None:
    job_id = job_store.create("t", NEW, request_id="r").job_id
    job_store.cancel("t", job_id, request_id="x")
    job_store.delete("t", job_id)
    job_store.retention.remove_old(events_kept_days=30)
    job_store.delete("t", job_id)
    age(job_store)
    job_store.retention.remove_old(events_kept_days=30)
    with pytest.raises(NotFound):
        job_store.delete("t", job_id)
    assert job_store.create("t", NEW, request_id="r").job_id != job_id


def test_requests_of_jobs_that_are_there_are_never_forgotten(job_store: JobStore, alter: Alter) -> None:
    job = job_store.create("t", NEW, request_id="r")
    job_store.cancel("t", job.job_id)
    alter(job.job_id, create_time_s=0.0, end_time_s=0.0)
    job_store.retention.remove_old(events_kept_days=30)
    assert job_store.create("t", NEW, request_id="r").job_id == job.job_id


def test_space_of_deleted_jobs_is_used_again(tmp_path: Path) -> None:
    store = JobStore(f"sqlite:///{tmp_path / 'jobs.sqlite'}")
    pages = []
    for _ in range(3):
        for number in range(10):
            job = store.create("t", NEW, request_id=f"r{number}")
            held = take(store)
            store.claims.append(held, [JobWarning(reason="R", message="m" * 1000)] * 20)
            store.claims.add_checkpoint(held, checkpoint(1))
            store.claims.finish(held, JobState.CANCELLED, progress=Progress(step=1, total_steps=1, served_s=1))
            store.delete("t", job.job_id)
        age(store)
        store.retention.remove_old(events_kept_days=30)
        with store._database.reading() as connection:
            pages.append(connection.execute(text("PRAGMA page_count")).scalar_one())
    store.close()
    assert pages[2] == pages[1] == pages[0]
