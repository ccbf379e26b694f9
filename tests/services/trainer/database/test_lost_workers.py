"""Jobs whose workers are lost are taken over after a rest, alone, not for ever, and whatever the clock does."""

from __future__ import annotations

import time

import pytest

from services.trainer.database.job_store import JobStore
from services.trainer.jobs import JobState, Progress
from tests.services.trainer.database.conftest import Alter
from tests.services.trainer.database.test_job_store import EXPIRED_S, HELD_S, NEW, take
from tests.services.trainer.database.test_states import checkpoint


def nothing_to_take(store: JobStore, *, max_attempts: int = 3, retry_delay_s: float = 0.0, alone: bool = True) -> bool:
    """Whether a claim comes back with nothing."""
    claim = store.claims.claim
    return claim("w", lease_s=HELD_S, max_attempts=max_attempts, retry_delay_s=retry_delay_s, alone=alone) is None


def test_lost_attempts_are_counted_from_the_last_checkpoint(job_store: JobStore) -> None:
    job_store.create("t", NEW)
    lost = [take(job_store, lease_s=EXPIRED_S, max_attempts=9).lost for _ in range(3)]
    job = take(job_store, max_attempts=9)
    job_store.claims.add_checkpoint(job, checkpoint(1))
    job_store.claims.heartbeat(job, Progress(step=1, total_steps=2), lease_s=EXPIRED_S)
    assert [*lost, job.lost, take(job_store).lost] == [0, 1, 2, 3, 1]


def test_job_that_writes_checkpoints_survives_any_number_of_lost_workers(job_store: JobStore) -> None:
    job_store.create("t", NEW)
    for step in range(5):
        job = take(job_store, lease_s=EXPIRED_S, max_attempts=2)
        job_store.claims.add_checkpoint(job, checkpoint(step))
    assert (job.attempt, job_store.get("t", job.job_id).state) == (5, JobState.RUNNING)


def test_abandoned_job_rests_longer_each_time(job_store: JobStore, alter: Alter) -> None:
    job_store.create("t", NEW)
    take(job_store, lease_s=EXPIRED_S)
    job = take(job_store)
    assert job.lost == 1
    alter(job.job_id, lease_until_s=time.time() - 20)
    assert nothing_to_take(job_store, retry_delay_s=30)
    alter(job.job_id, lease_until_s=time.time() - 31)
    assert not nothing_to_take(job_store, retry_delay_s=30)


def test_job_that_may_kill_workers_waits_for_one_that_has_no_other(job_store: JobStore) -> None:
    for _ in range(2):
        job_store.create("t", NEW)
    suspect = take(job_store)
    job_store.claims.release(suspect, "an error of the service's own", counted=True)
    assert job_store.get("t", suspect.job_id).lost == 1
    assert nothing_to_take(job_store, alone=False)  # not the other one either, lest the suspect wait for ever
    assert take(job_store).job_id == suspect.job_id
    assert not nothing_to_take(job_store, alone=False)


@pytest.mark.parametrize(("max_attempts", "shared"), [(3, True), (2, False)])
def test_first_loss_may_be_anybodys_but_the_last_attempt_is_alone(
    job_store: JobStore, max_attempts: int, shared: bool
) -> None:
    job_store.create("t", NEW)
    take(job_store, lease_s=EXPIRED_S)
    assert nothing_to_take(job_store, max_attempts=max_attempts, alone=False) is not shared


def test_lease_from_before_the_clock_was_set_back_has_run_out(job_store: JobStore, alter: Alter) -> None:
    job_store.create("t", NEW)
    job = take(job_store)
    assert nothing_to_take(job_store)
    alter(job.job_id, lease_until_s=time.time() + 3 * HELD_S)
    assert take(job_store).epoch == 2


def test_delay_from_before_the_clock_was_set_back_is_over(job_store: JobStore, alter: Alter) -> None:
    job_store.create("t", NEW)
    job = take(job_store)
    job_store.claims.release(job, "the store was gone", delay_s=100)
    assert nothing_to_take(job_store)
    alter(job.job_id, not_before_s=time.time() + 1e5)
    assert not nothing_to_take(job_store)


def test_job_is_given_up_once_though_many_workers_ask_at_once(job_store: JobStore) -> None:
    created = job_store.create("t", NEW)
    take(job_store, lease_s=EXPIRED_S)
    assert nothing_to_take(job_store, max_attempts=1)
    assert nothing_to_take(job_store, max_attempts=1)
    job = job_store.get("t", created.job_id)
    assert (job.state, job.last_sequence) == (JobState.FAILED, 3)
