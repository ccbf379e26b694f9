"""Migrations lead to the tables that the code uses, from nothing and from a database of before there were any."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Timer

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import MetaData, create_engine, insert, inspect, select, text

from services.trainer.database.database import migrate, open_engines
from services.trainer.database.job_store import JobStore
from services.trainer.database.tables import jobs, metadata
from services.trainer.jobs import JobState
from tests.services.trainer.database.test_job_store import NEW, take

JOB_ID = "job-" + "0" * 20
RUNNING = {
    "job_id": JOB_ID,
    "tenant": "t",
    "user_id": "u",
    "state": "RUNNING",
    "request": NEW.model_dump(mode="json", exclude={"priority"}),
    "create_time_s": 5.0,
    "step": 7,
    "total_steps": 10,
    "attempt": 1,
    "epoch": 1,
    "owner": "w",
    "lease_until_s": 9.0,
    "not_before_s": 0.0,
    "last_sequence": 1,
}


def test_migrations_make_the_tables_that_the_code_uses(database_url: str) -> None:
    writer, _ = open_engines(database_url)
    with writer.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        assert {*metadata.tables, "alembic_version"} == set(inspect(connection).get_table_names())
    writer.dispose()


def test_jobs_of_before_go_on_as_they_were(database_url: str) -> None:
    engine = create_engine(database_url)
    with engine.begin() as connection:
        migrate(connection, "0001")
        connection.execute(text("DROP TABLE alembic_version"))  # the first databases had no migrations
        of_before = MetaData()
        of_before.reflect(connection)
        event = {"kind": "state_changed", "state": "QUEUED"}
        connection.execute(insert(of_before.tables["jobs"]).values(RUNNING))
        connection.execute(
            insert(of_before.tables["events"]).values(job_id=JOB_ID, sequence=1, time_s=5.0, event=event)
        )
        known = {"tenant": "t", "request_id": "r", "payload_digest": "d", "job_id": JOB_ID}
        connection.execute(insert(of_before.tables["requests"]).values(known))
    engine.dispose()
    store = JobStore(database_url)
    job = store.get("t", JOB_ID)
    assert (job.config, job.priority, job.lost, job.first_sequence, job.step) == (NEW.config, 0, 0, 1, 7)
    assert store.created_by("t", "r") == job
    taken = take(store)
    store.claims.finish(taken, JobState.CANCELLED)
    assert [stored.sequence for stored in store.events_after(JOB_ID, 0)] == [1, 2, 3]
    store.close()


def test_processes_that_start_together_take_turns(database_url: str) -> None:
    create_engine(database_url).dispose()
    with ThreadPoolExecutor(8) as threads:
        opened = list(threads.map(lambda _: open_engines(database_url), range(8)))
    with opened[0][0].connect() as connection:
        assert connection.execute(select(jobs)).all() == []
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == ["0002"]
    for engines in opened:
        for engine in engines:
            engine.dispose()


def test_new_sqlite_database_that_another_is_writing_to_is_waited_for(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "jobs.sqlite", isolation_level=None, check_same_thread=False)) as other:
        other.execute("CREATE TABLE something (x)")
        other.execute("BEGIN IMMEDIATE")
        released = Timer(0.3, other.execute, ["COMMIT"])
        released.start()
        for engine in open_engines(f"sqlite:///{tmp_path / 'jobs.sqlite'}"):
            engine.dispose()
        released.join()
