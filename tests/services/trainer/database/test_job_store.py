"""Jobs on both databases: created once, held by one worker, with every event in one gapless sequence."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.common.errors import AlreadyExists, NotFound, NotReady, Unavailable
from services.trainer.config import TrainConfig
from services.trainer.database.job_store import JobStore, LostJob
from services.trainer.jobs import (
    Artifact,
    ArtifactPublished,
    DatasetReference,
    Fault,
    Job,
    JobFailure,
    JobState,
    JobWarning,
    NewJob,
    Progress,
    StateChanged,
    TrainingResult,
)

NEW = NewJob(dataset=DatasetReference(dataset_id="ds-1", manifest_digest="0" * 64), config=TrainConfig(rank=4))
EXPIRED_S, HELD_S = -1.0, 60.0
ARTIFACT = Artifact(artifact_name="lora.safetensors", uri="s3://b/k", size_bytes=1, content_digest="0")
RESULT = TrainingResult(lora=ARTIFACT, held_out_loss_base=1.5, held_out_loss_lora=1.0, step_time_s=0.5)
FAILURE = JobFailure(fault=Fault.USER, reason="NON_FINITE_LOSS", message="diverged", remedy="Lower the learning rate.")


def take(store: JobStore, *, lease_s: float = HELD_S, max_attempts: int = 3, owner: str = "w") -> Job:
    """Claim a job that must be there."""
    job = store.claims.claim(owner, lease_s=lease_s, max_attempts=max_attempts)
    assert job
    return job


def states(store: JobStore, job: Job) -> list[JobState]:
    """The states that a job went through, by its events."""
    stored = store.events_after(job.job_id, 0)
    return [one.event.state for one in stored if isinstance(one.event, StateChanged)]


def at_once(count: int, work: Callable[[int], object]) -> list[object]:
    """Do `work(0..count-1)` in as many threads."""
    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(work, range(count)))


def test_created_job_is_queued_and_found_again(job_store: JobStore) -> None:
    new = NEW.model_copy(update={"user_id": "u", "display_name": "n", "held_out": NEW.dataset})
    job = job_store.create("t", new)
    assert job_store.get("t", job.job_id) == job
    assert NewJob(**job.model_dump(include=set(NewJob.model_fields))) == new
    assert (job.state, job.tenant, job.attempt, job.step) == (JobState.QUEUED, "t", 0, 0)
    assert abs(job.create_time_s - time.time()) < 5
    assert states(job_store, job) == [JobState.QUEUED]


def test_jobs_are_there_for_whoever_opens_the_database(job_store: JobStore, database_url: str) -> None:
    job = job_store.create("t", NEW)
    assert JobStore(database_url).get("t", job.job_id) == job


def test_unknown_job_is_not_found(job_store: JobStore) -> None:
    for call in (job_store.get, job_store.cancel, job_store.delete):
        with pytest.raises(NotFound, match="job-none") as caught:
            call("t", "job-none")
        assert caught.value.reason == "JOB_NOT_FOUND"


def test_tenants_do_not_see_each_other(job_store: JobStore) -> None:
    job = job_store.create("mine", NEW, request_id="r")
    for call in (job_store.get, job_store.cancel, job_store.delete):
        with pytest.raises(NotFound):
            call("other", job.job_id)
    assert job_store.list("other", before=None, limit=10) == []
    assert job_store.create("other", NEW, request_id="r").job_id != job.job_id


@pytest.mark.parametrize("page", [1, 2, 3, 10])
def test_pages_list_every_job_once_newest_first(job_store: JobStore, page: int) -> None:
    made = [job_store.create("t", NEW) for _ in range(5)]
    listed: list[Job] = []
    while found := job_store.list(
        "t", before=(listed[-1].create_time_s, listed[-1].job_id) if listed else None, limit=page
    ):
        listed += found
    assert sorted(job.job_id for job in listed) == sorted(job.job_id for job in made)
    assert [job.create_time_s for job in listed] == sorted((job.create_time_s for job in made), reverse=True)


def test_list_can_be_for_one_user(job_store: JobStore) -> None:
    for user_id in ("a", "b", "a"):
        job_store.create("t", NEW.model_copy(update={"user_id": user_id}))
    assert [job.user_id for job in job_store.list("t", user_id="a", before=None, limit=10)] == ["a", "a"]


def test_repeated_request_makes_one_job(job_store: JobStore) -> None:
    first, again = (job_store.create("t", NEW, request_id="r") for _ in range(2))
    assert first == again
    assert len(job_store.list("t", before=None, limit=10)) == 1


def test_request_repeated_by_many_at_once_makes_one_job(job_store: JobStore) -> None:
    made = at_once(16, lambda _: job_store.create("t", NEW, request_id="r").job_id)
    assert len(set(made)) == len(job_store.list("t", before=None, limit=10)) == 1


def test_request_id_with_another_payload_is_refused(job_store: JobStore) -> None:
    job_store.create("t", NEW, request_id="r")
    with pytest.raises(AlreadyExists) as caught:
        job_store.create("t", NEW.model_copy(update={"config": TrainConfig(rank=8)}), request_id="r")
    assert caught.value.reason == "REQUEST_ID_REUSED"
    assert len(job_store.list("t", before=None, limit=10)) == 1


def test_request_is_the_same_when_its_dataset_was_encoded_again(job_store: JobStore) -> None:
    job = job_store.create("t", NEW, request_id="r")
    other = DatasetReference(dataset_id=NEW.dataset.dataset_id, manifest_digest="1" * 64)
    assert job_store.create("t", NEW.model_copy(update={"dataset": other}), request_id="r") == job


def test_requests_without_an_id_are_all_new(job_store: JobStore) -> None:
    assert job_store.create("t", NEW).job_id != job_store.create("t", NEW).job_id


def test_oldest_job_is_claimed_first(job_store: JobStore) -> None:
    made = []
    for _ in range(3):
        made.append(job_store.create("t", NEW).job_id)
        time.sleep(0.005)  # the database's clock counts milliseconds
    assert [take(job_store).job_id for _ in made] == made
    assert job_store.claims.claim("w", lease_s=HELD_S, max_attempts=3) is None


def test_claim_is_a_new_epoch_and_attempt(job_store: JobStore) -> None:
    created = job_store.create("t", NEW)
    job = take(job_store)
    assert (job.state, job.epoch, job.attempt) == (JobState.RUNNING, 1, 1)
    assert job.start_time_s is not None
    assert states(job_store, created) == [JobState.QUEUED, JobState.RUNNING]


def test_every_job_is_claimed_by_one_of_many_workers(job_store: JobStore) -> None:
    made = {job_store.create("t", NEW).job_id for _ in range(6)}
    claimed = at_once(16, lambda n: job_store.claims.claim(f"w{n}", lease_s=HELD_S, max_attempts=3))
    taken = [job.job_id for job in claimed if isinstance(job, Job)]
    assert sorted(taken) == sorted(made)


def test_queue_position_counts_the_jobs_ahead(job_store: JobStore) -> None:
    made = []
    for _ in range(3):
        made.append(job_store.create("t", NEW))
        time.sleep(0.005)
    assert [job_store.queue_position(job) for job in made] == [0, 1, 2]
    take(job_store)
    assert job_store.queue_position(made[2]) == 1


def test_heartbeat_keeps_the_job_and_notes_the_step(job_store: JobStore) -> None:
    job_store.create("t", NEW)
    job = take(job_store, lease_s=EXPIRED_S)
    assert job_store.claims.heartbeat(job, Progress(step=7, total_steps=10), lease_s=HELD_S).state is JobState.RUNNING
    assert job_store.claims.claim("other", lease_s=HELD_S, max_attempts=3) is None
    now = job_store.get("t", job.job_id)
    assert (now.step, now.total_steps) == (7, 10)


def test_expired_lease_is_claimed_by_another_with_the_next_epoch(job_store: JobStore) -> None:
    job_store.create("t", NEW)
    lost = take(job_store, lease_s=EXPIRED_S)
    job_store.claims.append(lost, [JobWarning(reason="R", message="m")])
    job = take(job_store, owner="other")
    assert (job.job_id, job.epoch, job.attempt, job.step) == (lost.job_id, lost.epoch + 1, 2, 0)
    assert job.start_time_s == lost.start_time_s


@pytest.mark.parametrize(
    "write",
    [
        lambda store, job: store.claims.append(job, [JobWarning(reason="R", message="m")]),
        lambda store, job: store.claims.heartbeat(job, Progress(step=9, total_steps=9), lease_s=HELD_S),
        lambda store, job: store.claims.finish(job, JobState.SUCCEEDED, result=RESULT),
        lambda store, job: store.claims.release(job, "stopped"),
    ],
    ids=["append", "heartbeat", "finish", "release"],
)
def test_worker_that_lost_its_job_can_write_nothing(
    job_store: JobStore, write: Callable[[JobStore, Job], object]
) -> None:
    job_store.create("t", NEW)
    lost = take(job_store, lease_s=EXPIRED_S)
    held = job_store.get("t", take(job_store).job_id)
    with pytest.raises(LostJob):
        write(job_store, lost)
    assert job_store.get("t", lost.job_id) == held


def test_deleted_job_is_lost(job_store: JobStore) -> None:
    job_store.create("t", NEW)
    job = take(job_store)
    job_store.claims.finish(job, JobState.CANCELLED)
    job_store.delete("t", job.job_id)
    with pytest.raises(LostJob):
        job_store.claims.append(job, [JobWarning(reason="R", message="m")])


def test_job_that_loses_worker_after_worker_fails_for_the_systems_fault(job_store: JobStore) -> None:
    created = job_store.create("t", NEW)
    last = [take(job_store, lease_s=EXPIRED_S, max_attempts=2) for _ in range(2)][-1]
    assert job_store.claims.claim("w", lease_s=HELD_S, max_attempts=2) is None
    job = job_store.get("t", created.job_id)
    assert job.failure
    assert (job.state, job.failure.fault, job.failure.reason) == (JobState.FAILED, Fault.SYSTEM, "WORKER_LOST")
    assert job.end_time_s is not None
    with pytest.raises(LostJob):
        job_store.claims.finish(last, JobState.SUCCEEDED, result=RESULT)


def test_released_job_is_queued_again_and_the_attempt_does_not_count(job_store: JobStore) -> None:
    job_store.create("t", NEW)
    for _ in range(5):
        job = take(job_store, max_attempts=2)
        assert job.attempt == 1
        job_store.claims.release(job, "its worker was stopped")
    assert job_store.get("t", job.job_id).state is JobState.QUEUED
    assert job.epoch == 5


def test_finish_keeps_result_and_last_events_together(job_store: JobStore) -> None:
    job_store.create("t", NEW)
    job = take(job_store)
    job_store.claims.finish(job, JobState.SUCCEEDED, last_events=[ArtifactPublished(artifact=ARTIFACT)], result=RESULT)
    done = job_store.get("t", job.job_id)
    assert (done.state, done.result, done.failure) == (JobState.SUCCEEDED, RESULT, None)
    assert done.end_time_s is not None
    kinds = [stored.event.kind for stored in job_store.events_after(job.job_id, 0)]
    assert kinds == ["state_changed", "state_changed", "artifact_published", "state_changed"]


def test_failed_job_says_why_in_its_row_and_its_last_event(job_store: JobStore) -> None:
    job_store.create("t", NEW)
    job = take(job_store)
    job_store.claims.finish(job, JobState.FAILED, failure=FAILURE)
    assert job_store.get("t", job.job_id).failure == FAILURE
    last = job_store.events_after(job.job_id, 0)[-1].event
    assert last == StateChanged(state=JobState.FAILED, message="diverged")


def test_finished_job_is_never_claimed_again(job_store: JobStore) -> None:
    for state in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED):
        job_store.create("t", NEW)
        job_store.claims.finish(take(job_store, lease_s=EXPIRED_S), state)
    assert job_store.claims.claim("w", lease_s=HELD_S, max_attempts=3) is None


def test_queued_job_is_cancelled_at_once(job_store: JobStore) -> None:
    job = job_store.cancel("t", job_store.create("t", NEW).job_id)
    assert job.state is JobState.CANCELLED
    assert job.end_time_s is not None
    assert job_store.claims.claim("w", lease_s=HELD_S, max_attempts=3) is None


def test_running_job_is_cancelled_by_its_worker(job_store: JobStore) -> None:
    job_store.create("t", NEW)
    job = take(job_store)
    assert job_store.cancel("t", job.job_id).state is JobState.CANCELLING
    assert job_store.claims.heartbeat(job, Progress(step=1, total_steps=2), lease_s=HELD_S).state is JobState.CANCELLING
    job_store.claims.finish(job, JobState.CANCELLED)
    assert states(job_store, job)[-2:] == [JobState.CANCELLING, JobState.CANCELLED]


def test_cancelling_twice_is_one_cancellation(job_store: JobStore) -> None:
    job_store.create("t", NEW)
    job = take(job_store)
    first, again = job_store.cancel("t", job.job_id), job_store.cancel("t", job.job_id)
    assert first == again


def test_cancelled_job_whose_worker_died_needs_no_other_to_end(job_store: JobStore) -> None:
    job_store.create("t", NEW)
    lost = take(job_store, lease_s=EXPIRED_S, max_attempts=1)
    job_store.cancel("t", lost.job_id)
    assert job_store.claims.claim("w", lease_s=HELD_S, max_attempts=1) is None
    ended = job_store.get("t", lost.job_id)
    assert (ended.state, ended.failure) == (JobState.CANCELLED, None)
    assert ended.end_time_s is not None


def test_cancelled_job_that_is_released_has_ended(job_store: JobStore) -> None:
    job_store.create("t", NEW)
    job = take(job_store)
    job_store.cancel("t", job.job_id)
    job_store.claims.release(job, "its worker was stopped")
    ended = job_store.get("t", job.job_id)
    assert ended.state is JobState.CANCELLED
    assert ended.end_time_s is not None


@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.FAILED])
def test_job_that_has_ended_cannot_be_cancelled(job_store: JobStore, state: JobState) -> None:
    job_store.create("t", NEW)
    job = take(job_store)
    job_store.claims.finish(job, state)
    with pytest.raises(NotReady, match=state):
        job_store.cancel("t", job.job_id)


def test_only_an_ended_job_can_be_deleted(job_store: JobStore) -> None:
    job = job_store.create("t", NEW)
    with pytest.raises(NotReady) as caught:
        job_store.delete("t", job.job_id)
    assert caught.value.reason == "JOB_NOT_ENDED"
    job_store.cancel("t", job.job_id)
    job_store.delete("t", job.job_id)
    assert job_store.list("t", before=None, limit=10) == []
    assert job_store.events_after(job.job_id, 0) == []


def test_events_are_numbered_without_a_gap_whoever_writes_at_once(job_store: JobStore) -> None:
    job_store.create("t", NEW)
    job = take(job_store)
    warnings = [JobWarning(reason="R", message=str(number)) for number in range(3)]
    at_once(12, lambda n: job_store.claims.append(job, warnings[: n % 3 + 1]))
    sequences = [stored.sequence for stored in job_store.events_after(job.job_id, 0)]
    assert sequences == list(range(1, 2 + 24 + 1))
    assert job_store.get("t", job.job_id).last_sequence == sequences[-1]


def test_reader_goes_on_after_what_it_has_seen(job_store: JobStore) -> None:
    job_store.create("t", NEW)
    job = take(job_store)
    job_store.claims.append(job, [JobWarning(reason="R", message=str(number)) for number in range(5)])
    whole = job_store.events_after(job.job_id, 0)
    assert job_store.events_after(job.job_id, 4) == whole[4:]
    assert job_store.events_after(job.job_id, 2, limit=2) == whole[2:4]
    assert job_store.events_after(job.job_id, 99) == []


def test_event_comes_back_as_it_was_written(job_store: JobStore) -> None:
    job_store.create("t", NEW)
    job = take(job_store)
    event = ArtifactPublished(artifact=ARTIFACT)
    job_store.claims.append(job, [event])
    stored = job_store.events_after(job.job_id, 2)[0]
    assert stored.event == event
    assert abs(stored.time_s - time.time()) < 5


def test_database_that_does_not_open_is_unavailable_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no database")
    with pytest.raises(Unavailable) as caught:
        JobStore(f"sqlite:///{tmp_path / 'file'}")
    assert "FLUXSMITH_TRAINER_DATABASE_URL" in caught.value.remedy
