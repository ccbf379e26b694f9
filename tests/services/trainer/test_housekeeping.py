"""The server keeps house: what is old goes, also from the store, and what fails puts off only its own part."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import update

from services.common.errors import NotFound, NotReady, Unavailable
from services.common.object_store import ObjectStore
from services.stack import ROOT
from services.trainer import housekeeping
from services.trainer.database.job_store import JobStore
from services.trainer.database.tables import jobs as jobs_table
from services.trainer.housekeeping import Housekeeping, delete_job
from services.trainer.jobs import Job, JobState, JobWarning
from services.trainer.memory import resident_bytes, trim_heap
from services.trainer.results.job_files import checkpoints_prefix, job_prefix
from services.trainer.settings import TrainerSettings
from tests.services.trainer.database.test_job_store import NEW, take
from tests.services.trainer.database.test_states import checkpoint

DAY_S = 24 * 3600.0
SETTINGS = TrainerSettings(events_kept_days=30, jobs_kept_days=90)


def ended(jobs: JobStore, store: ObjectStore, tenant: str, *, days_ago: float, discard: bool = False) -> Job:
    """A job that ended so long ago, with a warning, a checkpoint and their files."""
    jobs.create(tenant, NEW)
    job = take(jobs)
    jobs.claims.append(job, [JobWarning(reason="R", message="m")])
    jobs.claims.add_checkpoint(job, checkpoint(3))
    for key in (f"{checkpoints_prefix(tenant, job.job_id)}000003-1/manifest.json", file_of(job)):
        store.put(key, b"data")
    jobs.claims.finish(job, JobState.FAILED)
    changed = {"end_time_s": time.time() - days_ago * DAY_S, "discard_checkpoints": discard}
    with jobs._database.writing() as connection:
        connection.execute(update(jobs_table).where(jobs_table.c.job_id == job.job_id).values(**changed))
    return jobs.get(tenant, job.job_id)


def file_of(job: Job) -> str:
    return f"{job_prefix(job.tenant, job.job_id)}1/lora.safetensors"


def keep_house(jobs: JobStore, store: ObjectStore, settings: TrainerSettings = SETTINGS) -> None:
    Housekeeping(store, jobs, settings).keep_house()


def files(store: ObjectStore, job: Job) -> list[str]:
    return list(store.keys(job_prefix(job.tenant, job.job_id)))


def is_there(jobs: JobStore, job: Job) -> bool:
    with suppress(NotFound):
        return bool(jobs.get(job.tenant, job.job_id))
    return False


def test_jobs_long_ended_go_with_their_files_and_younger_ones_stay(
    job_store: JobStore, store: ObjectStore, tenant: str
) -> None:
    old, young = (ended(job_store, store, tenant, days_ago=days) for days in (91, 89))
    keep_house(job_store, store)
    assert [is_there(job_store, job) for job in (old, young)] == [False, True]
    assert (files(store, old), len(files(store, young))) == ([], 2)


def test_job_that_has_not_ended_stays_however_old(job_store: JobStore, store: ObjectStore, tenant: str) -> None:
    job = job_store.create(tenant, NEW)
    store.put(file_of(job), b"data")
    keep_house(job_store, store, SETTINGS.model_copy(update={"jobs_kept_days": 1e-9}))
    with pytest.raises(NotReady, match="is QUEUED"):
        delete_job(store, job_store, tenant, job.job_id)
    assert is_there(job_store, job)
    assert len(files(store, job)) == 1


def test_zero_days_keep_jobs_and_events_for_ever(job_store: JobStore, store: ObjectStore, tenant: str) -> None:
    job = ended(job_store, store, tenant, days_ago=9999)
    keep_house(job_store, store, TrainerSettings(events_kept_days=0, jobs_kept_days=0))
    assert job_store.get(tenant, job.job_id).first_sequence == 1


def test_old_events_go_and_younger_ones_stay(job_store: JobStore, store: ObjectStore, tenant: str) -> None:
    old, young = (ended(job_store, store, tenant, days_ago=days) for days in (31, 29))
    keep_house(job_store, store)
    assert job_store.get(tenant, old.job_id).first_sequence == old.last_sequence
    assert job_store.get(tenant, young.job_id).first_sequence == 1


def test_discarded_checkpoints_go_with_their_files_and_no_other_file(
    job_store: JobStore, store: ObjectStore, tenant: str
) -> None:
    discarded = ended(job_store, store, tenant, days_ago=0, discard=True)
    kept = ended(job_store, store, tenant, days_ago=0)
    keep_house(job_store, store)
    assert [len(job_store.checkpoints(tenant, job.job_id)) for job in (discarded, kept)] == [0, 1]
    assert files(store, discarded) == [file_of(discarded)]
    assert len(files(store, kept)) == 2


def test_holds_of_every_tenant_are_looked_at(
    job_store: JobStore, store: ObjectStore, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(f"{tenant}/holds/ds/job-1", b"")
    seen: list[str] = []
    monkeypatch.setattr(housekeeping, "release_ended", lambda _store, _jobs, each, **_: seen.append(each))
    keep_house(job_store, store)
    assert tenant in seen


class FailingStore:
    """A store whose deletions fail, and its listings of tenants if told so."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def folders(self, prefix: str) -> Iterable[str]:
        raise Unavailable(f"no {prefix}", reason="STORE_UNAVAILABLE", remedy="wait")

    def delete_prefix(self, prefix: str) -> None:
        raise Unavailable(f"no {prefix}", reason="STORE_UNAVAILABLE", remedy="wait")


def test_store_that_fails_puts_off_only_what_needs_it(job_store: JobStore, store: ObjectStore, tenant: str) -> None:
    old = ended(job_store, store, tenant, days_ago=91)
    discarded = ended(job_store, store, tenant, days_ago=31, discard=True)
    keep_house(job_store, FailingStore(store))  # type: ignore[arg-type]
    assert is_there(job_store, old)
    assert job_store.get(tenant, discarded.job_id).first_sequence == discarded.last_sequence  # needs no store
    assert len(job_store.checkpoints(tenant, discarded.job_id)) == 1
    keep_house(job_store, store)
    assert not is_there(job_store, old)
    assert job_store.checkpoints(tenant, discarded.job_id) == []


def test_error_that_nobody_thought_of_puts_off_only_its_own_part(
    job_store: JobStore, store: ObjectStore, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> int:
        raise KeyError("surprise")

    store.put(f"{tenant}/holds/ds/job-1", b"")
    monkeypatch.setattr(housekeeping, "release_ended", broken)
    old = ended(job_store, store, tenant, days_ago=91)
    keep_house(job_store, store)
    assert not is_there(job_store, old)


def test_thread_keeps_house_each_interval_until_closed(
    job_store: JobStore, store: ObjectStore, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "MINUTE_S", 0.005)
    keeper = Housekeeping(store, job_store, SETTINGS)
    keeper.start()
    for _ in range(2):
        old = ended(job_store, store, tenant, days_ago=91)
        deadline_s = time.monotonic() + 60
        while is_there(job_store, old):
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
    keeper.close()
    keeper._thread.join(60)
    assert not keeper._thread.is_alive()


def test_job_that_is_gone_already_is_no_error(job_store: JobStore, store: ObjectStore, tenant: str) -> None:
    job = ended(job_store, store, tenant, days_ago=0)
    for _ in range(2):
        delete_job(store, job_store, tenant, job.job_id)
    delete_job(store, job_store, tenant, "job-none")
    assert not is_there(job_store, job)


def test_garbage_is_freed_in_no_time_whatever_was_imported() -> None:
    code = """
import gc, weakref
from services.trainer.memory import collect_garbage
class Thing: pass
kept = [[] for _ in range(60_000)]
collect_garbage()
frozen = gc.get_freeze_count()
thing = Thing()
thing.itself = thing
gone = weakref.ref(thing)
del thing
collect_garbage()
print(frozen > 60_000, gone(), gc.get_freeze_count() == frozen)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert told.stdout == "True None True\n"


def test_freed_memory_goes_back_to_the_system() -> None:
    pieces = [bytearray(100_000) for _ in range(2000)]  # each below what malloc maps by itself
    last = pieces[-1]  # keeps the heap from shrinking by itself
    held_bytes = resident_bytes()
    del pieces
    trim_heap()
    assert resident_bytes() < held_bytes - 150_000_000
    assert len(last) == 100_000
