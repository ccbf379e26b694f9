"""What callers may ask of a job, and what that makes of it in each of its states."""

from __future__ import annotations

from sqlalchemy import Connection, update

from services.common.errors import NotReady
from services.trainer.database.rows import end, move
from services.trainer.database.shares import enter
from services.trainer.database.tables import jobs
from services.trainer.jobs import Job, JobState


def cancel(connection: Connection, job: Job, *, discard_checkpoints: bool) -> None:
    """Ask for its end: at once while no worker has it."""
    if job.state in {JobState.QUEUED, JobState.PAUSED}:
        end(connection, job.job_id, JobState.CANCELLED)
    elif job.state in {JobState.RUNNING, JobState.PAUSING}:
        move(connection, job.job_id, JobState.CANCELLING)
    elif job.state not in {JobState.CANCELLING, JobState.CANCELLED}:
        raise _ended(job, "cancelled")
    if discard_checkpoints:
        connection.execute(update(jobs).where(jobs.c.job_id == job.job_id).values(discard_checkpoints=True))


def pause(connection: Connection, job: Job) -> None:
    """Ask for its rest: at once while no worker has it."""
    if job.state is JobState.QUEUED:
        move(connection, job.job_id, JobState.PAUSED)
    elif job.state is JobState.RUNNING:
        move(connection, job.job_id, JobState.PAUSING)
    elif job.state not in {JobState.PAUSING, JobState.PAUSED}:
        raise _gone(job, "paused")


def resume(connection: Connection, job: Job) -> None:
    """Let it go on: in the queue, or with the worker that has not let go of it yet."""
    if job.state is JobState.PAUSED:
        enter(connection, job.tenant, job.user_id)
        move(connection, job.job_id, JobState.QUEUED, not_before_s=0.0)
    elif job.state is JobState.PAUSING:
        move(connection, job.job_id, JobState.RUNNING)
    elif job.state not in {JobState.QUEUED, JobState.RUNNING}:
        raise _gone(job, "resumed")


def want_checkpoint(connection: Connection, job: Job) -> None:
    """Ask for a checkpoint, which only a worker can write."""
    if job.state is not JobState.RUNNING:
        raise NotReady(
            f"job {job.job_id!r} is {job.state}",
            reason="JOB_NOT_RUNNING",
            remedy="Ask for a checkpoint while the job is RUNNING; those written so far can be listed.",
        )
    connection.execute(update(jobs).where(jobs.c.job_id == job.job_id).values(checkpoint_wanted=True))


def _gone(job: Job, done: str) -> NotReady:
    if job.state is not JobState.CANCELLING:
        return _ended(job, done)
    return NotReady(
        f"job {job.job_id!r} is {job.state}",
        reason="JOB_CANCELLING",
        remedy=f"A job whose end was asked for cannot be {done}; create a new one.",
    )


def _ended(job: Job, done: str) -> NotReady:
    return NotReady(
        f"job {job.job_id!r} is {job.state}",
        reason="JOB_ENDED",
        remedy=f"Only jobs that have not ended can be {done}.",
    )
