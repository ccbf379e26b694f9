"""Migrations lead to the tables that the code uses, from nothing and from a database of before there were any."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, inspect, select, text

from services.trainer.database.job_store import JobStore
from services.trainer.database.tables import jobs, metadata, open_engines
from tests.services.trainer.database.test_job_store import NEW


def test_migrations_make_the_tables_that_the_code_uses(database_url: str) -> None:
    writer, _ = open_engines(database_url)
    with writer.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        assert {"jobs", "events", "requests", "alembic_version"} == set(inspect(connection).get_table_names())
    writer.dispose()


def test_database_of_before_migrations_is_taken_as_it_is(database_url: str) -> None:
    store = JobStore(database_url)
    job = store.create("t", NEW)
    with store._writer.begin() as connection:
        connection.execute(text("DROP TABLE alembic_version"))
    again = JobStore(database_url)
    assert again.get("t", job.job_id).config == NEW.config
    for one in (store, again):
        one._writer.dispose()
        one._reader.dispose()


def test_processes_that_start_together_take_turns(database_url: str) -> None:
    create_engine(database_url).dispose()
    with ThreadPoolExecutor(8) as threads:
        opened = list(threads.map(lambda _: open_engines(database_url), range(8)))
    with opened[0][0].connect() as connection:
        assert connection.execute(select(jobs)).all() == []
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == ["0001"]
    for engines in opened:
        for engine in engines:
            engine.dispose()
