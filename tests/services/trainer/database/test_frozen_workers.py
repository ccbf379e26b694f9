"""A worker that is frozen in the middle of a transaction, on PostgreSQL: it keeps nobody else waiting for long."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Connection, text

from services.common.errors import Unavailable
from services.trainer.database import claims, database
from services.trainer.database.job_store import JobStore, LostJob
from services.trainer.database.shares import serve
from services.trainer.jobs import Job, JobState, Progress
from services.trainer.settings import TrainerSettings
from tests.services.trainer.database.conftest import Alter
from tests.services.trainer.database.test_job_store import HELD_S, NEW, take
from tests.services.trainer.database.test_line import queue

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
PROGRESS = Progress(step=1, total_steps=2, served_s=3.0)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server gives up on idle transactions soon: those of the stores that are opened from then on."""
    monkeypatch.setattr(database, "IDLE_TIMEOUT_S", 0.3)


@pytest.fixture
def frozen(database_url: str) -> Iterator[JobStore]:
    """The connections of the worker that will be frozen."""
    store = JobStore(database_url)
    yield store
    store.close()


@contextmanager
def heartbeat_without_end(store: JobStore, job: Job) -> Iterator[Connection]:
    """The transaction of a heartbeat, as it is before its commit."""
    with store._database.writing() as connection:
        claims._update_held(connection, job)
        serve(connection, job.tenant, job.user_id, 1.0)
        yield connection


def test_claim_passes_by_a_job_whose_row_is_locked(job_store: JobStore, frozen: JobStore, alter: Alter) -> None:
    queue(job_store, *[("t", "u", 0)] * 3)
    held = take(frozen)
    alter(held.job_id, lease_until_s=0.0)
    with heartbeat_without_end(frozen, held):  # it raises if the others had to wait until the server ends it
        found = job_store.claims.waiting(max_attempts=3)
        assert found
        assert found.job_id == held.job_id
        others = [take(job_store).job_id for _ in range(2)]
        assert held.job_id not in others
        assert job_store.claims.claim("w", lease_s=HELD_S, max_attempts=3) is None
    alter(held.job_id, lease_until_s=0.0)
    assert take(job_store).job_id == held.job_id


@pytest.mark.usefixtures("soon")
def test_frozen_heartbeat_delays_others_only_until_the_server_ends_it(frozen: JobStore, database_url: str) -> None:
    healthy = JobStore(database_url)
    queue(healthy, ("t", "a", 0), ("t", "b", 0))
    held, other = take(frozen), take(healthy)

    def others_go_on() -> None:
        with heartbeat_without_end(frozen, held):
            healthy.claims.heartbeat(other, PROGRESS, lease_s=HELD_S)  # has the tenant's row to write
            healthy.create("t", NEW.model_copy(update={"user_id": "c"}))
            healthy.cancel("t", held.job_id)

    with pytest.raises(Unavailable):
        others_go_on()
    assert frozen.claims.heartbeat(held, PROGRESS, lease_s=HELD_S).state is JobState.CANCELLING
    healthy.close()


@pytest.mark.usefixtures("soon")
def test_worker_that_thaws_has_lost_its_job(frozen: JobStore, alter: Alter, job_store: JobStore) -> None:
    queue(job_store, ("t", "a", 0))
    held = take(frozen)
    alter(held.job_id, lease_until_s=0.0)

    def thaw_too_late() -> None:
        with heartbeat_without_end(frozen, held) as connection:
            job_store.cancel("t", held.job_id)  # waits for the row
            assert job_store.claims.claim("w", lease_s=HELD_S, max_attempts=3) is None  # ends it
            connection.execute(text("SELECT 1"))

    with pytest.raises(Unavailable):
        thaw_too_late()
    assert job_store.get("t", held.job_id).state is JobState.CANCELLED
    with pytest.raises(LostJob):
        frozen.claims.heartbeat(held, PROGRESS, lease_s=HELD_S)


def test_idle_transaction_ends_before_leases_and_patience_do(job_store: JobStore) -> None:
    with job_store._database.writing() as connection:
        told = connection.execute(text("SHOW idle_in_transaction_session_timeout")).scalar()
        given = text("SELECT count(*) FROM pg_settings WHERE name LIKE 'tcp_keepalives%' AND source = 'client'")
        assert connection.execute(given).scalar() == 3
    assert told == f"{database.IDLE_TIMEOUT_S:.0f}s"
    assert min(database.BUSY_TIMEOUT_S, TrainerSettings.model_fields["lease_s"].default) > database.IDLE_TIMEOUT_S
