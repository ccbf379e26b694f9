"""What workers do with jobs: take the next in line, keep it, write what happens to it, and let it go.

A claim gives a job to one worker for a while (the lease) under a new epoch. Whatever the worker writes afterwards names
that epoch; when no row has it any more, the worker has lost the job and must stop (`LostJob`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, case, delete, func, not_, or_, select, true, update

from services.trainer.checkpoints.retention import dropped_at_success
from services.trainer.database.database import Database, insert_if_new
from services.trainer.database.line import LONGEST_DELAY_S, active_counts, claimable, first, suspect
from services.trainer.database.rows import (
    HELD,
    NOBODY,
    append_events,
    checkpoint_values,
    end,
    job_of,
    lease_ran_out,
    move,
    read_checkpoints,
    read_job,
)
from services.trainer.database.shares import serve
from services.trainer.database.tables import checkpoints, jobs, now_s
from services.trainer.jobs import (
    Checkpoint,
    CheckpointWritten,
    Event,
    Fault,
    Job,
    JobFailure,
    JobState,
    Orders,
    Progress,
    StateChanged,
    StoredCheckpoint,
    TrainingResult,
)

_TO_TAKE = select(jobs.c.job_id).where(or_(jobs.c.state == JobState.QUEUED, lease_ran_out())).limit(1)

_MOST_TRIES = 100  # of one claim, while others take what it finds


class LostJob(Exception):
    """The job belongs to another worker now, or is gone: stop at once, write nothing more."""


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """The job that is next in line, and how many jobs of its tenant and of its user workers have already."""

    job_id: str
    tenant: str
    user_id: str
    priority: int
    suspect: bool
    """Whether only a worker without other jobs may take it."""
    tenant_active: int
    user_active: int


class Claims:
    """The workers' side of a job database. Every method but `claim` raises `LostJob`; all raise `Unavailable`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def claim(
        self,
        owner: str,
        *,
        lease_s: float,
        max_attempts: int,
        retry_delay_s: float = 0.0,
        alone: bool = True,
        only_suspects: bool = False,
    ) -> Job | None:
        """Take the next job that waits or whose worker has gone silent; None when there is none.

        A job whose workers were lost `max_attempts` times without a checkpoint in between FAILS instead; between such
        attempts it rests for `retry_delay_s` seconds, longer each time. Whoever is not `alone`, having other jobs, does
        not get one that may be what kills workers. It stays next in line nevertheless: then nothing is taken, so that
        it has its turn once a worker has nothing else to do; that one may ask for it with `only_suspects`.
        """
        if not self._anything_to_take():
            return None
        self.settle_abandoned(max_attempts)
        among = suspect(max_attempts) if only_suspects else true()
        tried: list[str] = []  # those that another worker took first, or is frozen over
        while len(tried) < _MOST_TRIES and (found := self._next(retry_delay_s, among, tried)):
            if not alone and _is_suspect(found, max_attempts):
                return None
            if job := self._take(found, owner, lease_s=lease_s, retry_delay_s=retry_delay_s):
                return job
            tried.append(found["job_id"])
        return None

    def heartbeat(self, job: Job, progress: Progress, *, lease_s: float) -> Orders:
        """Keep the job for another lease, note how far it is, and return what is wanted of it."""
        with self._database.writing() as connection:
            lease = {"lease_s": lease_s, "lease_until_s": now_s() + lease_s}
            held = _update_held(connection, job, **_noted(progress), **lease)
            serve(connection, job.tenant, job.user_id, progress.served_s)
            return Orders(state=JobState(held["state"]), checkpoint=held["checkpoint_wanted"])

    def append(self, job: Job, new_events: Sequence[Event], *, write_id: str = "") -> None:
        """Write events of a job, once for a `write_id` (up to 32 characters) that is tried again before any other.

        When the answer to a commit is lost, nobody knows whether it was made.
        """
        with self._database.writing() as connection:
            held = _update_held(connection, job)
            if write_id and held["last_write_id"] == write_id:
                return
            append_events(connection, job.job_id, new_events)
            _update_held(connection, job, last_write_id=write_id or None)

    def checkpoints(self, job: Job) -> list[StoredCheckpoint]:
        """The checkpoints of a job, newest first; never raises `LostJob`."""
        with self._database.reading() as connection:
            return read_checkpoints(connection, job.job_id)

    def staying_checkpoints(self, job: Job, state: JobState) -> list[StoredCheckpoint]:
        """Those that stay if the job ends in that state now, newest first; never raises `LostJob`."""
        with self._database.reading() as connection:
            needless = _needless(connection, job, state)
            return [each for each in read_checkpoints(connection, job.job_id) if each.checkpoint_id not in needless]

    def add_checkpoint(self, job: Job, checkpoint: Checkpoint, *, drop: Collection[str] = ()) -> None:
        """Make a checkpoint known that lies in the object store, and forget those that it takes the place of.

        It ends the wait for one that was asked for, which it then is, and shows that the job gets on. Adding it again
        changes nothing.
        """
        with self._database.writing() as connection:
            wanted = _update_held(connection, job)["checkpoint_wanted"]
            checkpoint = checkpoint.model_copy(update={"requested": checkpoint.requested or wanted})
            values = checkpoint_values(job.job_id, job.epoch, checkpoint)
            if insert_if_new(connection, checkpoints, **values):
                append_events(connection, job.job_id, [CheckpointWritten(checkpoint=checkpoint)])
            elif wanted:
                named = and_(checkpoints.c.job_id == job.job_id, checkpoints.c.checkpoint_id == values["checkpoint_id"])
                connection.execute(update(checkpoints).where(named).values(record=values["record"]))
            _drop_checkpoints(connection, job, drop)
            done = {"lost": 0, "checkpoint_wanted": False, "checkpoint_step": checkpoint.step}
            _update_held(connection, job, **done)

    def drop_checkpoints(self, job: Job, ids: Collection[str]) -> None:
        """Forget checkpoints, such as damaged ones; their objects are the caller's to remove."""
        with self._database.writing() as connection:
            _update_held(connection, job)
            _drop_checkpoints(connection, job, ids)
            _note_newest(connection, job)

    def finish(
        self,
        job: Job,
        state: JobState,
        *,
        last_events: Sequence[Event] = (),
        failure: JobFailure | None = None,
        result: TrainingResult | None = None,
        progress: Progress | None = None,
    ) -> None:
        """End a job, with its last events, in one transaction.

        A job whose cancellation was acknowledged in the meantime ends CANCELLED, whatever it made. Checkpoints that
        nobody needs any more are forgotten; their objects are the caller's to remove. The result names the LoRAs of the
        others with its files.
        """
        with self._database.writing() as connection:
            held = _update_held(connection, job, **(_noted(progress) if progress else {}))
            if held["state"] == JobState.CANCELLING:
                state, last_events, failure, result = JobState.CANCELLED, (), None, None
            append_events(connection, job.job_id, last_events)
            if needless := _needless(connection, job, state):
                _drop_checkpoints(connection, job, needless)
                _note_newest(connection, job)
            if result:
                loras = (each.lora for each in read_checkpoints(connection, job.job_id))
                result = result.model_copy(update={"artifacts": (*result.artifacts, *loras)})
            end(connection, job.job_id, state, failure=failure, result=result)
            serve(connection, job.tenant, job.user_id, progress.served_s if progress else 0.0)

    def park(self, job: Job, progress: Progress, *, because: str = "") -> JobState:
        """Let go of a job whose checkpoint is written, since a pause was asked for; return the state it is in now.

        One that was resumed in the meantime is queued again; one that is being cancelled stays the caller's. With
        `because` it is PAUSED in any case: it cannot go on until somebody has done something about that.
        """
        with self._database.writing() as connection:
            state = JobState(_update_held(connection, job, **_noted(progress))["state"])
            serve(connection, job.tenant, job.user_id, progress.served_s)
            if state is JobState.CANCELLING:
                return state
            state = JobState.PAUSED if state is JobState.PAUSING or because else JobState.QUEUED
            _let_go(connection, job, state, message=because, attempt=jobs.c.attempt - 1)
            return state

    def release(self, job: Job, message: str, *, delay_s: float = 0.0, counted: bool = False) -> None:
        """Put a job back into the queue, not to be claimed for `delay_s` seconds (an hour at most).

        The attempt does not count unless `counted`; then it is one that came to nothing (`Job.lost`). A job that is
        being paused or cancelled is PAUSED or CANCELLED.
        """
        with self._database.writing() as connection:
            state = JobState(_update_held(connection, job)["state"])
            if state is JobState.CANCELLING:
                end(connection, job.job_id, JobState.CANCELLED)
                return
            state = JobState.PAUSED if state is JobState.PAUSING else JobState.QUEUED
            attempt = {"lost": jobs.c.lost + 1} if counted else {"attempt": jobs.c.attempt - 1}
            not_before_s = now_s() + min(delay_s, LONGEST_DELAY_S)
            _let_go(connection, job, state, message=message, not_before_s=not_before_s, **attempt)

    def _anything_to_take(self) -> bool:
        with self._database.reading() as connection:
            return connection.execute(_TO_TAKE).first() is not None

    def suspect_waits(self, *, max_attempts: int, retry_delay_s: float = 0.0) -> bool:
        """Whether a job waits that only a worker without other jobs may take."""
        return self._next(retry_delay_s, suspect(max_attempts), ()) is not None

    def waiting(self, *, max_attempts: int, retry_delay_s: float = 0.0) -> Waiting | None:
        """The job that the next claim would take, whoever makes it; None when none waits. Changes nothing."""
        if not self._anything_to_take():
            return None
        with self._database.reading() as connection:
            found = first(connection, retry_delay_s=retry_delay_s, among=not_(_to_settle(max_attempts)))
            if found is None:
                return None
            tenants, users = active_counts(connection)
        tenant, user_id = found["tenant"], found["user_id"]
        return Waiting(
            job_id=found["job_id"],
            tenant=tenant,
            user_id=user_id,
            priority=found["priority"],
            suspect=_is_suspect(found, max_attempts),
            tenant_active=tenants.get(tenant, 0),
            user_active=users.get((tenant, user_id), 0),
        )

    def active_counts(self) -> tuple[dict[str, int], dict[tuple[str, str], int]]:
        """How many jobs workers have of each tenant, and of each tenant and user; no entry where it is none."""
        with self._database.reading() as connection:
            return active_counts(connection)

    def _next(self, retry_delay_s: float, among: ColumnElement[bool], tried: Collection[str]) -> RowMapping | None:
        with self._database.reading() as connection:
            return first(connection, retry_delay_s=retry_delay_s, among=and_(among, jobs.c.job_id.not_in(tried)))

    def _take(self, found: RowMapping, owner: str, *, lease_s: float, retry_delay_s: float) -> Job | None:
        """Claim the job that was found in line, unless it is not as it was found, or locked."""
        same = and_(jobs.c.job_id == found["job_id"], jobs.c.epoch == found["epoch"], jobs.c.state == found["state"])
        free = select(jobs.c.job_id).where(same, claimable(retry_delay_s)).with_for_update(skip_locked=True)
        take = (
            update(jobs)
            .where(jobs.c.job_id == free.scalar_subquery())
            .values(
                state=JobState.RUNNING,
                epoch=jobs.c.epoch + 1,
                attempt=jobs.c.attempt + 1,
                lost=jobs.c.lost + case((jobs.c.state == JobState.RUNNING, 1), else_=0),
                owner=owner,
                lease_s=lease_s,
                lease_until_s=now_s() + lease_s,
                start_time_s=func.coalesce(jobs.c.start_time_s, now_s()),
                progress_time_s=now_s(),
                step=jobs.c.checkpoint_step,
                step_time_s=None,
            )
            .returning(jobs)
        )
        with self._database.writing() as connection:
            row = connection.execute(take).mappings().one_or_none()
            if row is None:
                return None
            job = job_of(row)
            append_events(connection, job.job_id, [StateChanged(state=job.state, message=f"attempt {job.attempt}")])
            return read_job(connection, job.tenant, job.job_id)

    def settle_abandoned(self, max_attempts: int) -> None:
        """Move on the abandoned jobs that need no worker: paused and cancelled ones, and those that cost too many."""
        settled = _to_settle(max_attempts)
        with self._database.reading() as connection:
            if not connection.execute(select(jobs.c.job_id).where(settled).limit(1)).first():
                return
        with self._database.writing() as connection:
            locked = select(jobs.c.job_id, jobs.c.state).where(settled).with_for_update(skip_locked=True)
            for job_id, state in connection.execute(locked).all():
                _settle(connection, job_id, JobState(state), max_attempts)


def _to_settle(max_attempts: int) -> ColumnElement[bool]:
    """Whether a job was abandoned that no worker need take any more."""
    asked = jobs.c.state.in_((JobState.PAUSING, JobState.CANCELLING))
    return and_(lease_ran_out(), or_(asked, jobs.c.lost + 1 >= max_attempts))


def _is_suspect(found: RowMapping, max_attempts: int) -> bool:
    """What `suspect` says, of a job that was found in line."""
    abandoned = found["state"] == JobState.RUNNING
    return bool(found["lost"] > 0 or (abandoned and found["lost"] + 2 >= max_attempts))


def _settle(connection: Connection, job_id: str, state: JobState, max_attempts: int) -> None:
    lost: dict[str, Any] = {"epoch": jobs.c.epoch + 1, "lost": jobs.c.lost + 1}
    if state is JobState.CANCELLING:
        end(connection, job_id, JobState.CANCELLED, **lost)
    elif state is JobState.PAUSING:
        message = "its worker was lost; it goes on from its last checkpoint"
        move(connection, job_id, JobState.PAUSED, message=message, step=jobs.c.checkpoint_step, **lost, **NOBODY)
    else:
        failure = JobFailure(
            fault=Fault.SYSTEM,
            reason="WORKER_LOST",
            message=f"{max_attempts} workers were lost over this job",
            remedy="Look into the workers' logs; submit the job again once the cause is known.",
        )
        end(connection, job_id, JobState.FAILED, failure=failure, **lost)


def _update_held(connection: Connection, job: Job, **values: Any) -> RowMapping:
    """Write to a job under the epoch it was claimed with; return `state`, `checkpoint_wanted` and `last_write_id`."""
    held: ColumnElement[bool] = and_(jobs.c.job_id == job.job_id, jobs.c.epoch == job.epoch, jobs.c.state.in_(HELD))
    change = update(jobs).where(held).values(epoch=jobs.c.epoch, **values)
    told = (jobs.c.state, jobs.c.checkpoint_wanted, jobs.c.last_write_id)
    row = connection.execute(change.returning(*told)).mappings().one_or_none()
    if row is None:
        raise LostJob(f"job {job.job_id} is no longer held under epoch {job.epoch}")
    return row


def _noted(progress: Progress) -> dict[str, Any]:
    return {
        "step": progress.step,
        "total_steps": progress.total_steps,
        "progress_time_s": now_s() - progress.idle_s,
        "step_time_s": progress.step_time_s,
    }


def _let_go(connection: Connection, job: Job, state: JobState, **values: Any) -> None:
    again = {"step": jobs.c.checkpoint_step, **NOBODY}
    move(connection, job.job_id, state, **{**again, **values})


def _needless(connection: Connection, job: Job, state: JobState) -> list[str]:
    """Of a job that SUCCEEDED all checkpoints but those that were asked for; of a CANCELLED one all, if so asked."""
    found = read_checkpoints(connection, job.job_id)
    if state is JobState.SUCCEEDED:
        return dropped_at_success(found, job.config)
    discard = select(jobs.c.discard_checkpoints).where(jobs.c.job_id == job.job_id)
    if state is JobState.CANCELLED and connection.execute(discard).scalar_one():
        return [each.checkpoint_id for each in found]
    return []


def _drop_checkpoints(connection: Connection, job: Job, ids: Collection[str]) -> None:
    if ids:
        named = and_(checkpoints.c.job_id == job.job_id, checkpoints.c.checkpoint_id.in_(ids))
        connection.execute(delete(checkpoints).where(named))


def _note_newest(connection: Connection, job: Job) -> None:
    left = read_checkpoints(connection, job.job_id)
    newest = {"checkpoint_step": left[0].step if left else 0}
    connection.execute(update(jobs).where(jobs.c.job_id == job.job_id).values(newest))
