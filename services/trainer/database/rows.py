"""Rows of jobs and events: read as what they stand for, and moved on together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, insert, or_, select, update

from services.common.fields import require_id, unknown
from services.trainer.database.tables import checkpoints, events, jobs, now_s
from services.trainer.jobs import (
    Artifact,
    Checkpoint,
    Event,
    Job,
    JobFailure,
    JobState,
    StateChanged,
    StoredCheckpoint,
    TrainingResult,
)

HELD = (JobState.RUNNING, JobState.PAUSING, JobState.CANCELLING)
"""States in which a worker has the job, or had it when it was last heard of."""
ENDED = tuple(state for state in JobState if state.ended)
NOBODY: Mapping[str, Any] = {"owner": None, "lease_s": None, "lease_until_s": None, "step_time_s": None}
"""What a job's row says of its worker when it has none."""


def lease_ran_out() -> ColumnElement[bool]:
    """Whether the worker of a job has been silent for too long."""
    return and_(jobs.c.state.in_(HELD), or_(jobs.c.lease_until_s < now_s(), lease_from_the_future()))


def lease_from_the_future() -> ColumnElement[bool]:
    """Whether a lease ends later than any could that was given by now: the clock was set back since."""
    return jobs.c.lease_until_s > now_s() + 2 * jobs.c.lease_s


def read_job(connection: Connection, tenant: str, job_id: str, *, for_update: bool = False) -> Job:
    """The job of a tenant; raises `NotFound`."""
    require_id("job", job_id)
    query = select(jobs).where(jobs.c.job_id == job_id, jobs.c.tenant == tenant)
    row = connection.execute(query.with_for_update() if for_update else query).mappings().one_or_none()
    if row is None:
        raise unknown("job", job_id)
    return job_of(row)


def job_of(row: RowMapping) -> Job:
    """The job of a row."""
    fields = {name: value for name, value in row.items() if name in Job.model_fields}
    return Job.model_validate({**row["request"], **fields})


def move(connection: Connection, job_id: str, state: JobState, *, message: str = "", **values: Any) -> None:
    """Put a job into another state, and say so in its events."""
    connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(state=state, **values))
    append_events(connection, job_id, [StateChanged(state=state, message=message)])


def end(
    connection: Connection,
    job_id: str,
    state: JobState,
    *,
    failure: JobFailure | None = None,
    result: TrainingResult | None = None,
    **values: Any,
) -> None:
    """End a job, and write down what it has published, since its events will be removed one day."""
    published = {name: one.model_dump(mode="json") for name, one in published_files(connection, job_id).items()}
    move(
        connection,
        job_id,
        state,
        message=failure.message if failure else "",
        end_time_s=now_s(),
        failure=failure and failure.model_dump(mode="json"),
        result=result and result.model_dump(mode="json"),
        artifacts=published,
        checkpoint_wanted=False,
        **NOBODY,
        **values,
    )


def append_events(connection: Connection, job_id: str, new_events: Sequence[Event]) -> None:
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


def published_files(connection: Connection, job_id: str) -> dict[str, Artifact]:
    """The files that a job's events tell of, by name, the newest of each; not those of its checkpoints."""
    told = events.c.event["kind"].as_string().in_(("artifact_published", "preview_rendered"))
    query = select(events.c.event).where(events.c.job_id == job_id, told).order_by(events.c.sequence)
    found = [Artifact.model_validate(event.get("artifact") or event["image"]) for event in _scalars(connection, query)]
    return {artifact.artifact_name: artifact for artifact in found}


def removed_steps(connection: Connection, job_id: str) -> list[int]:
    """Steps of the checkpoints that a job's events tell of and that are no longer there, in order."""
    told = events.c.event["kind"].as_string() == "checkpoint_written"
    query = select(events.c.event["checkpoint"]).where(events.c.job_id == job_id, told)
    steps = {record["checkpoint_id"]: int(record["step"]) for record in _scalars(connection, query)}
    there = {each.checkpoint_id for each in read_checkpoints(connection, job_id)}
    return sorted(step for checkpoint_id, step in steps.items() if checkpoint_id not in there)


def read_checkpoints(connection: Connection, job_id: str) -> list[StoredCheckpoint]:
    """The checkpoints of a job, newest first, whatever the clock said when they were written."""
    newest = (checkpoints.c.epoch.desc(), checkpoints.c.step.desc(), checkpoints.c.create_time_s.desc())
    query = select(checkpoints.c.record, checkpoints.c.create_time_s).where(checkpoints.c.job_id == job_id)
    rows = connection.execute(query.order_by(*newest)).all()
    return [StoredCheckpoint.model_validate({**record, "create_time_s": time_s}) for record, time_s in rows]


def checkpoint_values(job_id: str, epoch: int, checkpoint: Checkpoint) -> dict[str, Any]:
    """The row of a checkpoint that is written now."""
    return {
        "job_id": job_id,
        "checkpoint_id": checkpoint.checkpoint_id,
        "step": checkpoint.step,
        "epoch": epoch,
        "create_time_s": now_s(),
        "record": checkpoint.model_dump(mode="json"),
    }


def _scalars(connection: Connection, query: Any) -> Sequence[dict[str, Any]]:
    return connection.execute(query).scalars().all()
