"""What is removed in the course of time, so that the database does not grow without end."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, select, update

from services.trainer.database.database import Database
from services.trainer.database.rows import ENDED, published_files
from services.trainer.database.tables import (
    checkpoints,
    deletions,
    events,
    jobs,
    now_s,
    requests,
)

DAY_S = 24 * 3600.0
TOMBSTONES_KEPT_DAYS = 30.0
MOST_AT_ONCE = 100  # jobs a transaction, so that workers do not wait for long


class Retention:
    """Removes what is old. What lies in the object store is the caller's to remove first."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def remove_old(self, *, events_kept_days: float) -> int:
        """Remove old events, and what was kept of jobs deleted a month ago; return the jobs whose events went.

        Events go so many days after their job's end, but for the last; 0 keeps them.
        """
        removed = self._remove_events(events_kept_days) if events_kept_days else 0
        with self._database.writing() as connection:
            _remove_tombstones(connection)
        return removed

    def due_for_deletion(self, *, jobs_kept_days: float, limit: int = MOST_AT_ONCE) -> Sequence[tuple[str, str]]:
        """(tenant, job_id) of jobs that ended so many days ago, oldest first; 0 keeps them.

        Remove their objects, then call `JobStore.delete`.
        """
        if not jobs_kept_days:
            return []
        query = select(jobs.c.tenant, jobs.c.job_id).where(_ended_before(jobs_kept_days)).order_by(jobs.c.end_time_s)
        with self._database.reading() as connection:
            return [(tenant, job_id) for tenant, job_id in connection.execute(query.limit(limit)).all()]

    def checkpoints_to_discard(self, *, limit: int = MOST_AT_ONCE) -> Sequence[tuple[str, str]]:
        """(tenant, job_id) of ended jobs whose checkpoints nobody wants any more.

        Remove their objects, then call `checkpoints_discarded`.
        """
        some = exists().where(checkpoints.c.job_id == jobs.c.job_id)
        query = select(jobs.c.tenant, jobs.c.job_id).where(jobs.c.state.in_(ENDED), jobs.c.discard_checkpoints, some)
        with self._database.reading() as connection:
            return [(tenant, job_id) for tenant, job_id in connection.execute(query.limit(limit)).all()]

    def checkpoints_discarded(self, job_id: str) -> None:
        """Forget the checkpoints of an ended job, whose objects are gone."""
        ended = and_(jobs.c.job_id == job_id, jobs.c.state.in_(ENDED))
        with self._database.writing() as connection:
            if connection.execute(update(jobs).where(ended).values(checkpoint_step=0)).rowcount:
                connection.execute(delete(checkpoints).where(checkpoints.c.job_id == job_id))

    def _remove_events(self, kept_days: float) -> int:
        old = and_(_ended_before(kept_days), jobs.c.first_sequence < jobs.c.last_sequence)
        removed = 0
        while True:
            with self._database.reading() as connection:
                due = connection.execute(select(jobs.c.job_id).where(old).limit(MOST_AT_ONCE)).scalars().all()
            if not due:
                return removed
            with self._database.writing() as connection:
                for job_id in sorted(due):  # others who remove at the same time take the rows in the same order
                    _remove_events_of(connection, job_id)
            removed += len(due)


def _remove_events_of(connection: Connection, job_id: str) -> None:
    query = select(jobs.c.last_sequence, jobs.c.artifacts).where(jobs.c.job_id == job_id)
    row = connection.execute(query.with_for_update()).one_or_none()
    if row is None:
        return  # deleted in the meantime
    values: dict[str, object] = {"first_sequence": row.last_sequence}
    if row.artifacts is None:  # it ended before they were written down
        published = published_files(connection, job_id)
        values["artifacts"] = {name: one.model_dump(mode="json") for name, one in published.items()}
    connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(**values))
    connection.execute(delete(events).where(events.c.job_id == job_id, events.c.sequence < row.last_sequence))


def _remove_tombstones(connection: Connection) -> None:
    old = deletions.c.time_s < now_s() - TOMBSTONES_KEPT_DAYS * DAY_S
    theirs = requests.c.job_id.in_(select(deletions.c.job_id).where(old))
    connection.execute(delete(requests).where(theirs))
    connection.execute(delete(deletions).where(old))


def _ended_before(days: float) -> ColumnElement[bool]:
    return and_(jobs.c.state.in_(ENDED), jobs.c.end_time_s < now_s() - days * DAY_S)
