"""A job store on each kind of database in turn, and a way to let time pass in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import update

from services.trainer.database.job_store import JobStore
from services.trainer.database.tables import jobs

Alter = Callable[..., None]


@pytest.fixture
def job_store(database_url: str) -> Iterator[JobStore]:
    """An empty job store on each kind of database in turn."""
    store = JobStore(database_url)
    yield store
    store.close()


@pytest.fixture
def alter(job_store: JobStore) -> Alter:
    """Writes values into a job's row, such as times long ago."""

    def write(job_id: str, **values: Any) -> None:
        with job_store._database.writing() as connection:
            connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(**values))

    return write
