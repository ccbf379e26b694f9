"""Pausing, resuming, cancelling, checkpoints on demand: what each makes of a job in each state, on both databases."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from services.common.errors import NotReady
from services.trainer.database.job_store import JobStore, LostJob
from services.trainer.jobs import (
    Artifact,
    Checkpoint,
    CheckpointWritten,
    Job,
    JobState,
    Progress,
)
from tests.services.trainer.database.conftest import Alter
from tests.services.trainer.database.test_job_store import EXPIRED_S, HELD_S, NEW, RESULT, states, take

PROGRESS = Progress(step=7, total_steps=10)
S = JobState


def checkpoint(step: int, name: str = "") -> Checkpoint:
    """A checkpoint after a step."""
    lora = Artifact(artifact_name=f"checkpoints/{step}.safetensors", uri="s3://b/l", size_bytes=1, content_digest="0")
    name = name or f"{step:06}"
    return Checkpoint(checkpoint_id=name, step=step, uri=f"s3://b/{name}", manifest_digest="0", size_bytes=2, lora=lora)


def beat(store: JobStore, job: Job) -> JobState:
    """The state that is wanted of a job."""
    return store.claims.heartbeat(job, PROGRESS, lease_s=HELD_S).state


def in_state(store: JobStore, state: JobState) -> Job:
    """A job in a state."""
    job = store.create("t", NEW)
    if state is S.QUEUED:
        return job
    job = take(store)
    if state in {S.PAUSING, S.PAUSED}:
        store.pause("t", job.job_id)
    if state is S.PAUSED:
        store.claims.park(job, PROGRESS)
    if state is S.CANCELLING:
        store.cancel("t", job.job_id)
    if state.ended:
        store.claims.finish(job, state, result=RESULT)
    return job


@pytest.mark.parametrize(
    ("call", "becomes"),
    [
        (
            JobStore.pause,
            {S.QUEUED: S.PAUSED, S.RUNNING: S.PAUSING, S.PAUSING: S.PAUSING, S.PAUSED: S.PAUSED},
        ),
        (
            JobStore.resume,
            {S.QUEUED: S.QUEUED, S.RUNNING: S.RUNNING, S.PAUSING: S.RUNNING, S.PAUSED: S.QUEUED},
        ),
        (
            JobStore.cancel,
            {
                S.QUEUED: S.CANCELLED,
                S.RUNNING: S.CANCELLING,
                S.PAUSING: S.CANCELLING,
                S.PAUSED: S.CANCELLED,
                S.CANCELLING: S.CANCELLING,
                S.CANCELLED: S.CANCELLED,
            },
        ),
        (JobStore.request_checkpoint, {S.RUNNING: S.RUNNING}),
    ],
    ids=["pause", "resume", "cancel", "request_checkpoint"],
)
def test_each_call_in_each_state(
    job_store: JobStore, call: Callable[[JobStore, str, str], Job], becomes: dict[JobState, JobState]
) -> None:
    for state in JobState:
        job = in_state(job_store, state)
        before = job_store.get("t", job.job_id)
        assert before.state is state
        if state in becomes:
            assert call(job_store, "t", job.job_id).state is becomes[state]
        else:
            with pytest.raises(NotReady, match=state):
                call(job_store, "t", job.job_id)
        after = job_store.get("t", job.job_id)
        assert (after.last_sequence > before.last_sequence) is (after.state is not before.state)


def test_refused_calls_say_why(job_store: JobStore) -> None:
    reasons = []
    for state, call in ((S.CANCELLING, job_store.pause), (S.FAILED, job_store.resume), (S.FAILED, job_store.cancel)):
        with pytest.raises(NotReady) as caught:
            call("t", in_state(job_store, state).job_id)
        reasons.append(caught.value.reason)
    with pytest.raises(NotReady) as caught:
        job_store.request_checkpoint("t", in_state(job_store, S.QUEUED).job_id)
    assert [*reasons, caught.value.reason] == ["JOB_CANCELLING", "JOB_ENDED", "JOB_ENDED", "JOB_NOT_RUNNING"]


def test_paused_job_is_claimed_only_once_it_was_resumed(job_store: JobStore) -> None:
    job = in_state(job_store, S.PAUSED)
    assert job_store.claims.claim("w", lease_s=HELD_S, max_attempts=3) is None
    job_store.resume("t", job.job_id)
    again = take(job_store)
    assert (again.job_id, again.epoch, again.attempt) == (job.job_id, 2, 1)


def test_worker_hears_of_a_pause_and_parks_the_job_at_its_checkpoint(job_store: JobStore) -> None:
    job_store.create("t", NEW)
    job = take(job_store)
    job_store.pause("t", job.job_id)
    assert beat(job_store, job) is S.PAUSING
    job_store.claims.add_checkpoint(job, checkpoint(5))
    assert job_store.claims.park(job, PROGRESS) is S.PAUSED
    paused = job_store.get("t", job.job_id)
    assert (paused.step, paused.total_steps, paused.step_time_s) == (5, 10, None)
    with pytest.raises(LostJob):
        beat(job_store, job)


def test_job_resumed_while_it_was_being_parked_is_queued_again(job_store: JobStore) -> None:
    job = in_state(job_store, S.PAUSING)
    job_store.resume("t", job.job_id)
    assert job_store.claims.park(job, PROGRESS) is S.QUEUED
    assert take(job_store).job_id == job.job_id


def test_job_cancelled_while_it_was_being_parked_stays_its_workers(job_store: JobStore) -> None:
    job = in_state(job_store, S.PAUSING)
    job_store.cancel("t", job.job_id)
    assert job_store.claims.park(job, PROGRESS) is S.CANCELLING
    job_store.claims.finish(job, S.CANCELLED)
    assert states(job_store, job)[-2:] == [S.CANCELLING, S.CANCELLED]


def test_released_job_that_was_being_paused_is_paused(job_store: JobStore) -> None:
    job = in_state(job_store, S.PAUSING)
    job_store.claims.release(job, "its worker was stopped")
    assert job_store.get("t", job.job_id).state is S.PAUSED


def test_job_whose_worker_died_while_pausing_is_paused(job_store: JobStore) -> None:
    job_store.create("t", NEW)
    job = take(job_store)
    job_store.claims.add_checkpoint(job, checkpoint(5))
    job_store.claims.heartbeat(job, PROGRESS, lease_s=EXPIRED_S)
    job_store.pause("t", job.job_id)
    assert job_store.claims.claim("w", lease_s=HELD_S, max_attempts=3) is None
    paused = job_store.get("t", job.job_id)
    assert (paused.state, paused.step) == (S.PAUSED, 5)


def test_finished_job_succeeds_though_a_pause_was_asked_for(job_store: JobStore) -> None:
    job = in_state(job_store, S.PAUSING)
    job_store.claims.finish(job, S.SUCCEEDED, result=RESULT)
    assert job_store.get("t", job.job_id).state is S.SUCCEEDED


def test_wanted_checkpoint_is_asked_of_the_worker_until_it_is_there(job_store: JobStore) -> None:
    job_store.create("t", NEW)
    job = take(job_store)
    asked = [job_store.claims.heartbeat(job, PROGRESS, lease_s=HELD_S).checkpoint]
    job_store.request_checkpoint("t", job.job_id)
    asked.append(job_store.claims.heartbeat(job, PROGRESS, lease_s=HELD_S).checkpoint)
    job_store.claims.add_checkpoint(job, checkpoint(7))
    asked.append(job_store.claims.heartbeat(job, PROGRESS, lease_s=HELD_S).checkpoint)
    assert asked == [False, True, False]


def test_checkpoint_that_answers_a_wish_is_known_as_such(job_store: JobStore) -> None:
    job = in_state(job_store, S.RUNNING)
    job_store.claims.add_checkpoint(job, checkpoint(3))
    job_store.request_checkpoint("t", job.job_id)
    job_store.claims.add_checkpoint(job, checkpoint(4))
    job_store.claims.add_checkpoint(job, checkpoint(5))
    job_store.request_checkpoint("t", job.job_id)
    job_store.claims.add_checkpoint(job, checkpoint(5))  # the answer to the first time was lost
    assert {one.step: one.requested for one in job_store.claims.checkpoints(job)} == {3: False, 4: True, 5: True}


def test_checkpoint_is_there_with_its_event_and_the_older_one_gone(job_store: JobStore) -> None:
    job_store.create("t", NEW)
    job = take(job_store)
    for step, drop in ((2, ()), (4, ()), (6, ("000002",))):
        job_store.claims.add_checkpoint(job, checkpoint(step), drop=drop)
    assert [one.step for one in job_store.claims.checkpoints(job)] == [6, 4]
    assert job_store.checkpoints("t", job.job_id) == job_store.claims.checkpoints(job)
    assert job_store.get("t", job.job_id).checkpoint_step == 6
    assert job_store.events_after(job.job_id, 0)[-1].event == CheckpointWritten(checkpoint=checkpoint(6))
    assert set(job_store.artifacts(job.job_id)) == {"checkpoints/4.safetensors", "checkpoints/6.safetensors"}


def test_checkpoint_added_again_is_one_checkpoint(job_store: JobStore) -> None:
    job_store.create("t", NEW)
    job = take(job_store)
    for _ in range(2):
        job_store.claims.add_checkpoint(job, checkpoint(2))
    assert len(job_store.checkpoints("t", job.job_id)) == 1
    assert [stored.event.kind for stored in job_store.events_after(job.job_id, 2)] == ["checkpoint_written"]


def test_newest_checkpoint_is_the_last_attempts(job_store: JobStore, alter: Alter) -> None:
    job_store.create("t", NEW)
    first = take(job_store)
    job_store.claims.add_checkpoint(first, checkpoint(8))
    job_store.claims.release(first, "stopped")
    second = take(job_store)
    job_store.claims.add_checkpoint(second, checkpoint(5))
    assert [one.step for one in job_store.claims.checkpoints(second)] == [5, 8]


def test_damaged_checkpoint_is_dropped_and_the_one_before_counts(job_store: JobStore) -> None:
    job_store.create("t", NEW)
    job = take(job_store)
    left = []
    for step in (2, 4):
        job_store.claims.add_checkpoint(job, checkpoint(step))
    for name in ("000004", "000002"):
        job_store.claims.drop_checkpoints(job, [name])
        left.append(job_store.get("t", job.job_id).checkpoint_step)
    assert left == [2, 0]


def test_job_goes_on_from_its_checkpoints_step(job_store: JobStore) -> None:
    job_store.create("t", NEW)
    job = take(job_store)
    job_store.claims.add_checkpoint(job, checkpoint(5))
    job_store.claims.heartbeat(job, PROGRESS, lease_s=HELD_S)
    job_store.claims.release(job, "stopped")
    assert job_store.get("t", job.job_id).step == 5
    job_store.claims.heartbeat(take(job_store), PROGRESS, lease_s=EXPIRED_S)
    assert job_store.get("t", job.job_id).step == 7
    assert take(job_store).step == 5


def test_discarded_checkpoints_of_a_paused_job_are_removed_in_time_and_others_stay(job_store: JobStore) -> None:
    kept, discarded = (in_state(job_store, S.RUNNING) for _ in range(2))
    for job in (kept, discarded):
        job_store.claims.add_checkpoint(job, checkpoint(5))
        job_store.pause("t", job.job_id)
        job_store.claims.park(job, PROGRESS)
    assert job_store.cancel("t", kept.job_id).state is S.CANCELLED
    assert job_store.retention.checkpoints_to_discard() == []
    assert job_store.cancel("t", discarded.job_id, discard_checkpoints=True).discard_checkpoints
    assert job_store.retention.checkpoints_to_discard() == [("t", discarded.job_id)]
    job_store.retention.checkpoints_discarded(discarded.job_id)
    assert job_store.retention.checkpoints_to_discard() == []
    assert len(job_store.checkpoints("t", kept.job_id)) == 1
    assert job_store.checkpoints("t", discarded.job_id) == []


@pytest.mark.parametrize(("discard", "left"), [(False, 1), (True, 0)])
def test_cancelled_jobs_checkpoints_go_with_its_end_if_so_asked(job_store: JobStore, discard: bool, left: int) -> None:
    job = in_state(job_store, S.RUNNING)
    job_store.claims.add_checkpoint(job, checkpoint(5))
    job_store.cancel("t", job.job_id, discard_checkpoints=discard)
    job_store.claims.finish(job, S.CANCELLED)
    assert len(job_store.checkpoints("t", job.job_id)) == left
    assert job_store.get("t", job.job_id).checkpoint_step == 5 * left


def test_progress_is_when_the_job_last_got_on(job_store: JobStore) -> None:
    job_store.create("t", NEW)
    job = take(job_store)
    job_store.claims.heartbeat(job, Progress(step=1, total_steps=2, idle_s=100, step_time_s=0.5), lease_s=HELD_S)
    now = job_store.get("t", job.job_id)
    assert now.progress_time_s
    assert job.progress_time_s
    assert now.progress_time_s < job.progress_time_s - 50
    assert now.step_time_s == 0.5
