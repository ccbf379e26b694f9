"""Durable jobs as servers see them: created, listed, watched, moved on request and deleted, each of one tenant.

Workers' side is `claims.py`, what time removes `retention.py`. A call with a `request_id` acts once, however often it
comes: again with the same payload it returns the job as it is now, with another it raises `AlreadyExists`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, and_, delete, insert, or_, select

from services.common.errors import NotFound, NotReady
from services.common.fields import require_id, unknown
from services.trainer.database import changes, line
from services.trainer.database.claims import Claims, LostJob
from services.trainer.database.database import Database, insert_if_new
from services.trainer.database.quotas import refuse_over_quota
from services.trainer.database.requests import (
    Call,
    call_digest,
    creation_digest,
    find,
    refuse_another,
    refuse_deleted,
    repeated,
    request_id_reused,
    was_deleted,
)
from services.trainer.database.retention import Retention
from services.trainer.database.rows import (
    append_events,
    job_of,
    published_files,
    read_checkpoints,
    read_job,
    removed_steps,
)
from services.trainer.database.shares import enter
from services.trainer.database.tables import checkpoints, deletions, events, jobs, now_s
from services.trainer.jobs import (
    Artifact,
    Job,
    JobState,
    JobWarning,
    NewJob,
    StateChanged,
    StoredCheckpoint,
    StoredEvent,
)

__all__ = ["Head", "JobStore", "LostJob", "new_job_id", "request_id_reused"]


@dataclass(frozen=True, kw_only=True)
class Head:
    """How far the events of a job have come, and whether these are all."""

    last_sequence: int
    ended: bool


class JobStore:
    """Jobs of all tenants in one database. Safe to use from several threads and processes; raises `Unavailable`.

    `claims` is the workers' side, `retention` what time removes.
    """

    def __init__(self, database_url: str) -> None:
        self._database = Database(database_url)
        self.claims = Claims(self._database)
        self.retention = Retention(self._database)

    def close(self) -> None:
        """Close the connections to the database."""
        self._database.close()

    def create(
        self,
        tenant: str,
        new: NewJob,
        *,
        request_id: str = "",
        job_id: str = "",
        max_user_jobs: int = 0,
        max_tenant_jobs: int = 0,
        warnings: Sequence[JobWarning] = (),
    ) -> Job:
        """Queue a job, once for a `request_id`; raises what `created_by` does, also for another payload.

        `job_id` is the identifier for a job that is new, from `new_job_id`; made here unless given. Raises
        `QuotaExceeded` (`USER_QUOTA`, `TENANT_QUOTA`) when user or tenant have as many unfinished jobs as given; 0 is
        no limit. What was created before is found at the limit too. `warnings` become events of a job that is new.
        """
        digest = creation_digest(new)
        if request_id and (known := self._created(tenant, request_id, digest)):
            return known  # without waiting for those who write
        job_id = job_id or new_job_id()
        with self._database.writing() as connection:
            if before := repeated(connection, tenant, request_id, Call.CREATE, digest, job_id):
                return _made(connection, tenant, before, request_id)
            enter(connection, tenant, new.user_id)
            refuse_over_quota(
                connection, tenant, new.user_id, max_user_jobs=max_user_jobs, max_tenant_jobs=max_tenant_jobs
            )
            connection.execute(
                insert(jobs).values(
                    job_id=job_id,
                    tenant=tenant,
                    user_id=new.user_id,
                    state=JobState.QUEUED,
                    priority=new.priority,
                    request=new.model_dump(mode="json"),
                    create_time_s=now_s(),
                )
            )
            append_events(connection, job_id, [StateChanged(state=JobState.QUEUED), *warnings])
            return read_job(connection, tenant, job_id)

    def created_by(self, tenant: str, request_id: str) -> Job | None:
        """The job that this `request_id` made before, or None.

        Raises `AlreadyExists` (`REQUEST_ID_REUSED`) when it was used for another kind of call, and `NotReady`
        (`JOB_DELETED`) when the job has been deleted.
        """
        return self._created(tenant, request_id, None) if request_id else None

    def get(self, tenant: str, job_id: str) -> Job:
        """The job; raises `NotFound`."""
        with self._database.reading() as connection:
            return read_job(connection, tenant, job_id)

    def list(self, tenant: str, *, user_id: str = "", before: tuple[float, str] | None, limit: int) -> list[Job]:
        """Up to `limit` jobs, newest first, created before the (time, identifier) given."""
        query = select(jobs).where(jobs.c.tenant == tenant)
        if user_id:
            query = query.where(jobs.c.user_id == user_id)
        if before:
            same_time = and_(jobs.c.create_time_s == before[0], jobs.c.job_id < before[1])
            query = query.where(or_(jobs.c.create_time_s < before[0], same_time))
        query = query.order_by(jobs.c.create_time_s.desc(), jobs.c.job_id.desc()).limit(limit)
        with self._database.reading() as connection:
            return [job_of(row) for row in connection.execute(query).mappings()]

    def queue_position(self, job: Job) -> int:
        """Jobs of all tenants that are claimed before this one, as things are now; 0 for one that does not wait."""
        with self._database.reading() as connection:
            return line.position(connection, job.job_id)

    def events_after(self, job_id: str, sequence: int, *, limit: int = 200) -> Sequence[StoredEvent]:
        """The next events of a job after `sequence`, in order; raises `NotReady` (`EVENTS_REMOVED`) for a gap."""
        query = (
            select(events.c.sequence, events.c.time_s, events.c.event)
            .where(events.c.job_id == job_id, events.c.sequence > sequence)
            .order_by(events.c.sequence)
            .limit(limit)
        )
        with self._database.reading() as connection:
            found = [StoredEvent.model_validate(dict(row)) for row in connection.execute(query).mappings()]
        if found and found[0].sequence > sequence + 1:
            raise _events_removed(job_id, found[0].sequence)
        return found

    def heads(self, job_ids: Collection[str]) -> dict[str, Head]:
        """How far the events of each of these jobs have come, in one statement; deleted ones are left out."""
        query = select(jobs.c.job_id, jobs.c.last_sequence, jobs.c.state).where(jobs.c.job_id.in_(job_ids))
        with self._database.reading() as connection:
            found = connection.execute(query).all()
        return {job_id: Head(last_sequence=last, ended=JobState(state).ended) for job_id, last, state in found}

    def artifacts(self, job_id: str) -> dict[str, Artifact]:
        """The files that a job has published so far, by name, the newest of each, those of its checkpoints included."""
        with self._database.reading() as connection:
            stored = connection.execute(select(jobs.c.artifacts).where(jobs.c.job_id == job_id)).scalar()
            if stored is None:
                published = published_files(connection, job_id)
            else:
                published = {name: Artifact.model_validate(one) for name, one in stored.items()}
            of_checkpoints = {one.lora.artifact_name: one.lora for one in read_checkpoints(connection, job_id)}
        return of_checkpoints | published

    def checkpoints(self, tenant: str, job_id: str) -> Sequence[StoredCheckpoint]:
        """The checkpoints of a job, newest first; raises `NotFound`."""
        with self._database.reading() as connection:
            read_job(connection, tenant, job_id)
            return read_checkpoints(connection, job_id)

    def removed_checkpoints(self, job_id: str) -> Sequence[int]:
        """Steps of the checkpoints that were written and are removed since, in order; none once its events are gone."""
        with self._database.reading() as connection:
            return removed_steps(connection, job_id)

    def cancel(self, tenant: str, job_id: str, *, discard_checkpoints: bool = False, request_id: str = "") -> Job:
        """Ask for the end of a job: one that no worker has ends here, another when its worker sees it.

        With `discard_checkpoints` its checkpoints are to be removed (`Retention.checkpoints_to_discard`), also when it
        was cancelled before. Raises `NotReady` (`JOB_ENDED`) for one that has ended otherwise.
        """

        def change(connection: Connection, job: Job) -> None:
            changes.cancel(connection, job, discard_checkpoints=discard_checkpoints)

        digest = call_digest(Call.CANCEL, job_id, *(["discard_checkpoints"] if discard_checkpoints else []))
        return self._once(tenant, job_id, Call.CANCEL, digest, request_id, change)

    def pause(self, tenant: str, job_id: str, *, request_id: str = "") -> Job:
        """Ask for a rest: one that no worker has is PAUSED at once, another when its worker has written a checkpoint.

        Raises `NotReady` (`JOB_ENDED`, `JOB_CANCELLING`).
        """
        return self._once(tenant, job_id, Call.PAUSE, call_digest(Call.PAUSE, job_id), request_id, changes.pause)

    def resume(self, tenant: str, job_id: str, *, request_id: str = "") -> Job:
        """Let a paused job go on; raises `NotReady` (`JOB_ENDED`, `JOB_CANCELLING`)."""
        return self._once(tenant, job_id, Call.RESUME, call_digest(Call.RESUME, job_id), request_id, changes.resume)

    def request_checkpoint(self, tenant: str, job_id: str, *, request_id: str = "") -> Job:
        """Have the worker of a job write a checkpoint soon; raises `NotReady` (`JOB_NOT_RUNNING`)."""
        digest = call_digest(Call.CHECKPOINT, job_id)
        return self._once(tenant, job_id, Call.CHECKPOINT, digest, request_id, changes.want_checkpoint)

    def require_ended(self, tenant: str, job_id: str, *, request_id: str = "") -> bool:
        """Whether there is anything to delete: an ended job. False for one that was deleted before.

        To be called before the job's objects are removed: raises what `delete` would, so `NotFound`, `NotReady`
        (`JOB_NOT_ENDED`) while more may happen to it, and `AlreadyExists` (`REQUEST_ID_REUSED`).
        """
        with self._database.reading() as connection:
            if request_id and (known := find(connection, tenant, request_id)):
                refuse_another(known, Call.DELETE, call_digest(Call.DELETE, job_id))
            return _ended(connection, tenant, job_id)

    def delete(self, tenant: str, job_id: str, *, request_id: str = "") -> None:
        """Remove an ended job with its events and checkpoints; deleting it again changes nothing.

        A tombstone stays for a month, and the identifiers of the requests that made and changed the job with it. An
        ended job stays ended, so nothing can come between `require_ended`, the removal of its objects, and this.
        """
        with self._database.writing() as connection:
            digest = call_digest(Call.DELETE, job_id)
            repeated(connection, tenant, request_id, Call.DELETE, digest, job_id)
            if _ended(connection, tenant, job_id, for_update=True):
                connection.execute(delete(events).where(events.c.job_id == job_id))
                connection.execute(delete(checkpoints).where(checkpoints.c.job_id == job_id))
                connection.execute(delete(jobs).where(jobs.c.job_id == job_id))
                insert_if_new(connection, deletions, job_id=job_id, tenant=tenant, time_s=now_s())

    def _created(self, tenant: str, request_id: str, digest: str | None) -> Job | None:
        with self._database.reading() as connection:
            known = find(connection, tenant, request_id)
            if known is None:
                return None
            refuse_another(known, Call.CREATE, digest)
            return _made(connection, tenant, known["job_id"], request_id)

    def _once(
        self,
        tenant: str,
        job_id: str,
        call: Call,
        digest: str,
        request_id: str,
        change: Callable[[Connection, Job], None],
    ) -> Job:
        """Change a job unless this request did so before; return it as it is then."""
        with self._database.writing() as connection:
            if not repeated(connection, tenant, request_id, call, digest, job_id):
                change(connection, read_job(connection, tenant, job_id, for_update=True))
            return read_job(connection, tenant, job_id)


def new_job_id() -> str:
    """An identifier for a job."""
    return f"job-{secrets.token_hex(10)}"


def _made(connection: Connection, tenant: str, job_id: str, request_id: str) -> Job:
    """The job that a request made; raises `NotReady` when that has been deleted, be it in this very moment."""
    try:
        return read_job(connection, tenant, job_id)
    except NotFound:
        refuse_deleted(connection, tenant, job_id, request_id)
        raise


def _ended(connection: Connection, tenant: str, job_id: str, *, for_update: bool = False) -> bool:
    require_id("job", job_id)
    query = select(jobs.c.state).where(jobs.c.job_id == job_id, jobs.c.tenant == tenant)
    state = connection.execute(query.with_for_update() if for_update else query).scalar()
    if state is None:
        if was_deleted(connection, tenant, job_id):
            return False
        raise unknown("job", job_id)
    if not JobState(state).ended:
        raise NotReady(
            f"job {job_id!r} is {state}",
            reason="JOB_NOT_ENDED",
            remedy="Cancel it and wait for its end, then delete it.",
        )
    return True


def _events_removed(job_id: str, first_sequence: int) -> NotReady:
    return NotReady(
        f"the events of job {job_id!r} before sequence {first_sequence} were removed some time after its end",
        reason="EVENTS_REMOVED",
        remedy=f"Read the job and its metrics.csv, and watch it after sequence {first_sequence - 1}.",
    )
