"""Databases that are locked, full or cut off: `Unavailable`, nothing half done, and nothing acknowledged is lost."""

from __future__ import annotations

import sqlite3
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, make_url, text

from services.common.errors import Unavailable
from services.trainer.database import database
from services.trainer.database.job_store import JobStore
from services.trainer.jobs import Job, JobState, JobWarning, Progress
from tests.services.trainer.database.test_job_store import HELD_S, NEW, RESULT, take
from tests.services.trainer.database.test_states import checkpoint

WARNING = JobWarning(reason="R", message="m" * 3000)
Write = Callable[[JobStore, Job], object]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the SQLite database lies."""
    return tmp_path / "jobs.sqlite"


@pytest.fixture
def store(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobStore]:
    """A job store in SQLite that loses patience soon."""
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.05)
    store = JobStore(f"sqlite:///{path}")
    yield store
    store.close()


def sequences(store: JobStore, job: Job) -> list[int]:
    """The numbers of a job's events."""
    return [stored.sequence for stored in store.events_after(job.job_id, 0, limit=10_000)]


WRITES: dict[str, Write] = {
    "create": lambda store, _: store.create("t", NEW),
    "pause": lambda store, job: store.pause("t", job.job_id, request_id="p"),
    "heartbeat": lambda store, job: store.claims.heartbeat(job, Progress(step=3, total_steps=9), lease_s=HELD_S),
    "append": lambda store, job: store.claims.append(job, [WARNING]),
    "checkpoint": lambda store, job: store.claims.add_checkpoint(job, checkpoint(3)),
    "finish": lambda store, job: store.claims.finish(job, JobState.SUCCEEDED, result=RESULT),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_write_to_a_locked_database_is_unavailable_and_can_be_repeated(
    store: JobStore, path: Path, write: Write
) -> None:
    store.create("t", NEW)
    job = take(store)
    before = store.get("t", job.job_id)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match="locked") as caught:
            write(store, job)
        assert caught.value.reason == "DATABASE_UNAVAILABLE"
        assert store.get("t", job.job_id) == before  # who reads is served all the while
        other.execute("ROLLBACK")
    write(store, job)
    assert sequences(store, job) == list(range(1, store.get("t", job.job_id).last_sequence + 1))


def test_claim_from_a_locked_database_is_unavailable(store: JobStore, path: Path) -> None:
    created = store.create("t", NEW)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable):
            take(store)
    assert (store.get("t", created.job_id).state, take(store).epoch) == (JobState.QUEUED, 1)


def test_full_disk_is_unavailable_and_loses_nothing_acknowledged(store: JobStore) -> None:
    store.create("t", NEW)
    job = take(store)
    limit_pages(store, 120)
    acknowledged = sum(until_unavailable(WRITES["append"], store, job) for _ in range(2))
    until_unavailable(WRITES["create"], store, job)
    assert acknowledged > 20
    assert sequences(store, job) == list(range(1, 2 + acknowledged + 1))
    limit_pages(store, 100_000)
    store.claims.append(job, [WARNING])
    store.claims.finish(job, JobState.SUCCEEDED, result=RESULT)
    assert sequences(store, job) == list(range(1, 2 + acknowledged + 2 + 1))
    with store._database.reading() as connection:
        assert connection.execute(text("PRAGMA integrity_check")).scalar() == "ok"


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_connections_cut_off_by_the_server_are_made_anew(job_store: JobStore, database_url: str) -> None:
    job_store.create("t", NEW)
    job = take(job_store)
    admin = JobStore(database_url)
    others = text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )

    def write_cut_off() -> None:
        with job_store._database.writing() as connection:
            connection.execute(text("UPDATE jobs SET step = 99"))
            with admin._database.reading() as other:
                other.execute(others)

    with pytest.raises(Unavailable):
        write_cut_off()
    assert job_store.get("t", job.job_id).step == 0
    job_store.claims.append(job, [WARNING])
    assert sequences(job_store, job) == [1, 2, 3]
    admin.close()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_server_that_is_gone_is_unavailable(database_url: str) -> None:
    with pytest.raises(Unavailable) as caught:
        JobStore(make_url(database_url).set(query={}, host="127.0.0.1", port=1).render_as_string(hide_password=False))
    assert caught.value.reason == "DATABASE_UNAVAILABLE"


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_callers_do_not_learn_where_the_database_is_and_nobody_its_password(database_url: str) -> None:
    away = make_url(database_url).set(query={}, host="127.0.0.1", port=1, password="hunter2")
    with pytest.raises(Unavailable) as caught:
        JobStore(away.render_as_string(hide_password=False))
    assert "127.0.0.1" not in caught.value.line
    assert "127.0.0.1" in caught.value.log_line
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def until_unavailable(write: Write, store: JobStore, job: Job) -> int:
    """How often a write was acknowledged before the disk was full."""
    for acknowledged in range(1000):
        try:
            write(store, job)
        except Unavailable as error:
            return acknowledged if "full" in error.message else -1
    raise AssertionError("the disk is never full")


def limit_pages(store: JobStore, most: int) -> None:
    """Let the database grow to so many pages, as a disk would that has room for no more."""

    def limit(connection: Any, record: object) -> None:
        connection.execute(f"PRAGMA max_page_count={most}")

    store.close()
    event.listen(store._database.writer, "connect", limit)
