"""Durable jobs: created by servers, claimed and moved on by workers, with every event in one gapless sequence a job.

A claim gives a job to one worker for a while (the lease) under a new epoch. Whatever the worker writes afterwards names
that epoch; when no row has it any more, the worker has lost the job and must stop (`LostJob`).
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, case, delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from services.common.errors import AlreadyExists, NotReady, Unavailable
from services.common.fields import require_id, unknown
from services.trainer.jobs import (
    Artifact,
    Event,
    Fault,
    Job,
    JobFailure,
    JobState,
    NewJob,
    StateChanged,
    StoredEvent,
    TrainingResult,
)
from services.trainer.database.tables import events, jobs, now_s, open_engines, requests

_HELD = (JobState.RUNNING, JobState.CANCELLING)


class LostJob(Exception):
    """The job belongs to another worker now, or is gone: stop at once, write nothing more."""


class JobStore:
    """Jobs and events of all tenants in one database. Safe to use from several threads and processes."""

    def __init__(self, database_url: str) -> None:
        with _translated():
            self._writer, self._reader = open_engines(database_url)

    def create(self, tenant: str, new: NewJob, *, request_id: str = "", job_id: str = "") -> Job:
        """Queue a job, once for a `request_id`; raises `AlreadyExists` when it came before with another payload.

        `job_id` is the identifier for a job that is new, from `new_job_id`; made here unless given.
        """
        # Not the manifests: the same request is the same job, also when a dataset was encoded again in between.
        pinned = {"manifest_digest", "encoding_id"}
        asked = new.model_dump_json(exclude={"dataset": pinned, "held_out": pinned})
        digest = hashlib.sha256(asked.encode()).hexdigest()
        job_id = job_id or new_job_id()
        try:
            return self._create(tenant, new, job_id, request_id=request_id, digest=digest)
        except IntegrityError:  # somebody else created a job with this request_id in between: find theirs
            return self._create(tenant, new, job_id, request_id=request_id, digest=digest)

    def created_by(self, tenant: str, request_id: str) -> Job | None:
        """The job that this `request_id` made before, or None."""
        with self._reading() as connection:
            known = _known_request(connection, tenant, request_id) if request_id else None
            return _read(connection, known["job_id"], tenant) if known else None

    def _create(self, tenant: str, new: NewJob, job_id: str, *, request_id: str, digest: str) -> Job:
        with self._writing() as connection:
            if request_id and (known := _known_request(connection, tenant, request_id)):
                if known["payload_digest"] != digest:
                    raise request_id_reused(request_id)
                return _read(connection, known["job_id"], tenant)
            connection.execute(
                insert(jobs).values(
                    job_id=job_id,
                    tenant=tenant,
                    user_id=new.user_id,
                    state=JobState.QUEUED,
                    request=new.model_dump(mode="json"),
                    create_time_s=now_s(),
                )
            )
            if request_id:
                connection.execute(
                    insert(requests).values(tenant=tenant, request_id=request_id, payload_digest=digest, job_id=job_id)
                )
            _append(connection, job_id, [StateChanged(state=JobState.QUEUED)])
            return _read(connection, job_id, tenant)

    def get(self, tenant: str, job_id: str) -> Job:
        """The job; raises `NotFound`."""
        with self._reading() as connection:
            return _read(connection, job_id, tenant)

    def list(self, tenant: str, *, user_id: str = "", before: tuple[float, str] | None, limit: int) -> list[Job]:
        """Up to `limit` jobs, newest first, created before the (time, identifier) given."""
        query = select(jobs).where(jobs.c.tenant == tenant)
        if user_id:
            query = query.where(jobs.c.user_id == user_id)
        if before:
            same_time = and_(jobs.c.create_time_s == before[0], jobs.c.job_id < before[1])
            query = query.where(or_(jobs.c.create_time_s < before[0], same_time))
        query = query.order_by(jobs.c.create_time_s.desc(), jobs.c.job_id.desc()).limit(limit)
        with self._reading() as connection:
            return [_job(row) for row in connection.execute(query).mappings()]

    def queue_position(self, job: Job) -> int:
        """Queued jobs created before this one."""
        ahead = and_(jobs.c.state == JobState.QUEUED, jobs.c.create_time_s < job.create_time_s)
        with self._reading() as connection:
            return connection.execute(select(func.count()).select_from(jobs).where(ahead)).scalar_one()

    def events_after(self, job_id: str, sequence: int, *, limit: int = 200) -> Sequence[StoredEvent]:
        """The next events of a job after `sequence`, in order."""
        query = (
            select(events.c.sequence, events.c.time_s, events.c.event)
            .where(events.c.job_id == job_id, events.c.sequence > sequence)
            .order_by(events.c.sequence)
            .limit(limit)
        )
        with self._reading() as connection:
            return [StoredEvent.model_validate(dict(row)) for row in connection.execute(query).mappings()]

    def artifacts(self, job_id: str) -> dict[str, Artifact]:
        """The files that a job has published so far, by name, the newest of each."""
        query = (
            select(events.c.event)
            .where(
                events.c.job_id == job_id,
                events.c.event["kind"].as_string().in_(("artifact_published", "preview_rendered")),
            )
            .order_by(events.c.sequence)
        )
        with self._reading() as connection:
            found = [_artifact(row) for row in connection.execute(query).scalars()]
        return {artifact.artifact_name: artifact for artifact in found}

    def cancel(self, tenant: str, job_id: str) -> Job:
        """Ask for the end of a job. A queued one ends here, a running one when its worker sees it."""
        with self._writing() as connection:
            job = _read(connection, job_id, tenant, for_update=True)
            if job.state is JobState.QUEUED:
                _move(connection, job_id, JobState.CANCELLED, end_time_s=now_s())
            elif job.state is JobState.RUNNING:
                _move(connection, job_id, JobState.CANCELLING)
            elif job.state not in {JobState.CANCELLING, JobState.CANCELLED}:
                raise NotReady(
                    f"job {job_id!r} is {job.state}",
                    reason="JOB_ENDED",
                    remedy="Only jobs that have not ended can be cancelled.",
                )
            return _read(connection, job_id, tenant)

    def require_ended(self, tenant: str, job_id: str) -> None:
        """Raise `NotReady` while more may happen to the job."""
        job = self.get(tenant, job_id)
        if not job.state.ended:
            raise NotReady(
                f"job {job_id!r} is {job.state}",
                reason="JOB_NOT_ENDED",
                remedy="Cancel it and wait for its end, then delete it.",
            )

    def delete(self, tenant: str, job_id: str) -> None:
        """Remove an ended job and its events; an ended job stays ended, so nothing can come in between."""
        self.require_ended(tenant, job_id)
        with self._writing() as connection:
            connection.execute(delete(requests).where(requests.c.job_id == job_id))
            connection.execute(delete(events).where(events.c.job_id == job_id))
            connection.execute(delete(jobs).where(jobs.c.job_id == job_id))

    def claim(self, owner: str, *, lease_s: float, max_attempts: int) -> Job | None:
        """Take the oldest job that waits or whose worker has gone silent, in one statement; None when there is none."""
        self._give_up_exhausted(max_attempts)
        abandoned = and_(jobs.c.state.in_(_HELD), jobs.c.lease_until_s < now_s())
        queued = and_(jobs.c.state == JobState.QUEUED, jobs.c.not_before_s <= now_s())
        waiting = or_(queued, abandoned)
        oldest = (
            select(jobs.c.job_id)
            .where(waiting)
            .order_by(jobs.c.create_time_s)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        take = (
            update(jobs)
            .where(jobs.c.job_id == oldest.scalar_subquery())
            .values(
                state=case((jobs.c.state == JobState.CANCELLING, jobs.c.state), else_=str(JobState.RUNNING)),
                epoch=jobs.c.epoch + 1,
                attempt=jobs.c.attempt + 1,
                owner=owner,
                lease_until_s=now_s() + lease_s,
                start_time_s=func.coalesce(jobs.c.start_time_s, now_s()),
                step=0,
            )
            .returning(jobs)
        )
        with self._writing() as connection:
            row = connection.execute(take).mappings().one_or_none()
            if row is None:
                return None
            job = _job(row)
            message = f"attempt {job.attempt}"
            _append(connection, job.job_id, [StateChanged(state=job.state, message=message)])
            return _read(connection, job.job_id, job.tenant)

    def heartbeat(self, job: Job, *, step: int, total_steps: int, lease_s: float) -> JobState:
        """Keep the job for another lease, note the step reached, and return the state that is wanted of it."""
        with self._writing() as connection:
            return _update_held(connection, job, step=step, total_steps=total_steps, lease_until_s=now_s() + lease_s)

    def append(self, job: Job, new_events: Sequence[Event]) -> None:
        """Write events of a job that this worker holds; raises `LostJob`."""
        with self._writing() as connection:
            _update_held(connection, job)
            _append(connection, job.job_id, new_events)

    def finish(
        self,
        job: Job,
        state: JobState,
        *,
        last_events: Sequence[Event] = (),
        failure: JobFailure | None = None,
        result: TrainingResult | None = None,
        progress: Mapping[str, int] | None = None,
    ) -> None:
        """End a job that this worker holds, with its last events, in one transaction; raises `LostJob`.

        A job whose cancellation was acknowledged in the meantime ends CANCELLED, whatever it made. `progress` has the
        final `step` and `total_steps`.
        """
        with self._writing() as connection:
            if _update_held(connection, job, **(progress or {})) is JobState.CANCELLING:
                state, last_events, failure, result = JobState.CANCELLED, (), None, None
            _append(connection, job.job_id, last_events)
            _move(
                connection,
                job.job_id,
                state,
                message=failure.message if failure else "",
                end_time_s=now_s(),
                owner=None,
                lease_until_s=None,
                failure=failure and failure.model_dump(mode="json"),
                result=result and result.model_dump(mode="json"),
            )

    def release(self, job: Job, message: str, *, delay_s: float = 0.0, counted: bool = False) -> None:
        """Put a job that this worker holds back into the queue, not to be claimed for `delay_s` seconds.

        The attempt does not count unless `counted`.
        """
        free: dict[str, Any] = {"owner": None, "lease_until_s": None}
        with self._writing() as connection:
            if _update_held(connection, job) is JobState.CANCELLING:
                _move(connection, job.job_id, JobState.CANCELLED, end_time_s=now_s(), **free)
            else:
                attempt = jobs.c.attempt if counted else jobs.c.attempt - 1
                again = {"step": 0, "attempt": attempt, "not_before_s": now_s() + delay_s, **free}
                _move(connection, job.job_id, JobState.QUEUED, message=message, **again)

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with _translated(), self._writer.begin() as connection:
            yield connection

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with _translated(), self._reader.connect() as connection:
            yield connection

    def _give_up_exhausted(self, max_attempts: int) -> None:
        failure = JobFailure(
            fault=Fault.SYSTEM,
            reason="WORKER_LOST",
            message=f"{max_attempts} workers were lost over this job",
            remedy="Look into the workers' logs; submit the job again once the cause is known.",
        )
        exhausted = and_(
            jobs.c.state == JobState.RUNNING, jobs.c.lease_until_s < now_s(), jobs.c.attempt >= max_attempts
        )
        with self._reading() as connection:
            if not connection.execute(select(jobs.c.job_id).where(exhausted).limit(1)).first():
                return
        with self._writing() as connection:
            locked = select(jobs.c.job_id).where(exhausted).with_for_update(skip_locked=True)
            for job_id in connection.execute(locked).scalars().all():
                _move(
                    connection,
                    job_id,
                    JobState.FAILED,
                    message=failure.message,
                    end_time_s=now_s(),
                    epoch=jobs.c.epoch + 1,
                    failure=failure.model_dump(mode="json"),
                )


def request_id_reused(request_id: str) -> AlreadyExists:
    """The error for a `request_id` that came before with another payload."""
    return AlreadyExists(
        f"request_id {request_id!r} was used with another payload",
        reason="REQUEST_ID_REUSED",
        remedy="Use a new request_id for a new job.",
    )


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except IntegrityError:
        raise  # a conflict between two callers, not an outage
    except SQLAlchemyError as error:
        raise Unavailable(
            f"the job database does not serve: {str(error).splitlines()[0]}",
            reason="DATABASE_UNAVAILABLE",
            remedy="Check FLUXSMITH_TRAINER_DATABASE_URL, that its server runs and that its disk has room.",
        ) from error


def _read(connection: Connection, job_id: str, tenant: str, *, for_update: bool = False) -> Job:
    require_id("job", job_id)
    query = select(jobs).where(jobs.c.job_id == job_id, jobs.c.tenant == tenant)
    row = connection.execute(query.with_for_update() if for_update else query).mappings().one_or_none()
    if row is None:
        raise unknown("job", job_id)
    return _job(row)


def _job(row: RowMapping) -> Job:
    fields = {name: value for name, value in row.items() if name in Job.model_fields}
    return Job.model_validate({**row["request"], **fields})


def _artifact(event: Mapping[str, Any]) -> Artifact:
    return Artifact.model_validate(event.get("artifact") or event["image"])


def _known_request(connection: Connection, tenant: str, request_id: str) -> RowMapping | None:
    same = and_(requests.c.tenant == tenant, requests.c.request_id == request_id)
    return connection.execute(select(requests).where(same)).mappings().one_or_none()


def _update_held(connection: Connection, job: Job, **values: Any) -> JobState:
    """Write to a job under the epoch it was claimed with; raises `LostJob` when that has passed."""
    held: ColumnElement[bool] = and_(jobs.c.job_id == job.job_id, jobs.c.epoch == job.epoch, jobs.c.state.in_(_HELD))
    changed = update(jobs).where(held).values(epoch=jobs.c.epoch, **values).returning(jobs.c.state)
    state = connection.execute(changed).scalar_one_or_none()
    if state is None:
        raise LostJob(f"job {job.job_id} is no longer held under epoch {job.epoch}")
    return JobState(state)


def _move(connection: Connection, job_id: str, state: JobState, *, message: str = "", **values: Any) -> None:
    connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(state=state, **values))
    _append(connection, job_id, [StateChanged(state=state, message=message)])


def _append(connection: Connection, job_id: str, new_events: Sequence[Event]) -> None:
    """Write events with the next sequence numbers; the row's lock makes them gapless."""
    if not new_events:
        return
    advance = (
        update(jobs)
        .where(jobs.c.job_id == job_id)
        .values(last_sequence=jobs.c.last_sequence + len(new_events))
        .returning(jobs.c.last_sequence)
    )
    last = connection.execute(advance).scalar_one()
    rows = [
        {"job_id": job_id, "sequence": sequence, "event": event.model_dump(mode="json")}
        for sequence, event in enumerate(new_events, start=last - len(new_events) + 1)
    ]
    connection.execute(insert(events).values(time_s=now_s()), rows)


def new_job_id() -> str:
    """An identifier for a job."""
    return f"job-{secrets.token_hex(10)}"
