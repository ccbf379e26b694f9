"""What the job database says, read straight from its file: the judge does not ask those who are judged."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENDED = ("SUCCEEDED", "FAILED", "CANCELLED")
BUSY_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Row:
    """A job's row."""

    job_id: str
    name: str
    state: str
    owner: str
    epoch: int
    attempt: int
    step: int
    last_sequence: int
    result: dict[str, Any] | None
    failure: dict[str, Any] | None

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in ENDED

    @property
    def owner_pid(self) -> int:
        """Process that has it, or 0."""
        return int(self.owner.rpartition("/")[2]) if self.owner else 0


@dataclass(frozen=True, kw_only=True)
class Happening:
    """An event as stored; `facts` is its JSON."""

    sequence: int
    facts: dict[str, Any]

    @property
    def kind(self) -> str:
        """What it tells, such as `steps_completed`."""
        return str(self.facts["kind"])

    @property
    def claims(self) -> bool:
        """Whether a worker took the job up here."""
        return self.kind == "state_changed" and self.facts["state"] == "RUNNING"


class Ledger:
    """Reads a SQLite job database, also while it is written to. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()

    def jobs(self) -> list[Row]:
        """Every job, oldest first."""
        query = (
            "SELECT job_id, state, owner, epoch, attempt, step, last_sequence, result, failure, request FROM jobs"
            " ORDER BY create_time_s, job_id"
        )
        return [_row(values) for values in self._all(query)]

    def happenings(self, job_id: str, *, after: int = 0) -> list[Happening]:
        """The events of a job after a sequence, in order."""
        query = "SELECT sequence, event FROM events WHERE job_id = ? AND sequence > ? ORDER BY sequence"
        return [
            Happening(sequence=sequence, facts=json.loads(event)) for sequence, event in self._all(query, job_id, after)
        ]

    def marks(self) -> dict[str, int]:
        """The newest sequence of every job at this moment."""
        return dict(self._all("SELECT job_id, last_sequence FROM jobs"))

    def checkpoints(self, job_id: str) -> list[dict[str, Any]]:
        """The checkpoints of a job that count, newest first."""
        query = "SELECT record FROM checkpoints WHERE job_id = ? ORDER BY step DESC, epoch DESC"
        return [json.loads(record) for (record,) in self._all(query, job_id)]

    def sizes_bytes(self) -> dict[str, int]:
        """Bytes of the pages of every table, with its indexes."""
        query = (
            "SELECT tbl_name, SUM(pgsize) FROM dbstat JOIN sqlite_master ON sqlite_master.name = dbstat.name"
            " GROUP BY tbl_name"
        )
        return dict(self._all(query))

    def close(self) -> None:
        """Let go of the file, as far as the calling thread has it."""
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            del self._local.connection

    def _all(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._reading() as connection:
            return list(connection.execute(query, values))

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = sqlite3.connect(
                f"file:{self._path}?mode=rw", uri=True, timeout=BUSY_S, isolation_level=None
            )
        yield connection


@contextmanager
def locked(path: Path) -> Iterator[sqlite3.Connection]:
    """Hold the database for writing, as a stuck process would: nobody else writes meanwhile."""
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
    try:
        connection.execute("BEGIN EXCLUSIVE")
        yield connection
        connection.execute("ROLLBACK")
    finally:
        connection.close()


def move_times(path: Path, seconds: float) -> None:
    """Move all times that decide what happens to a job."""
    with locked(path) as connection:
        for name in ("lease_until_s", "not_before_s", "progress_time_s", "create_time_s"):
            connection.execute(f"UPDATE jobs SET {name} = {name} + ?", (seconds,))  # noqa: S608 - our own names
        connection.execute("COMMIT")
        connection.execute("BEGIN")


def _row(values: tuple[Any, ...]) -> Row:
    job_id, state, owner, epoch, attempt, step, last_sequence, result, failure, request = values
    return Row(
        job_id=job_id,
        name=json.loads(request)["user_id"],
        state=state,
        owner=owner or "",
        epoch=epoch,
        attempt=attempt,
        step=step,
        last_sequence=last_sequence,
        result=_fact(result),
        failure=_fact(failure),
    )


def _fact(text: str | None) -> dict[str, Any] | None:
    value = json.loads(text) if text else None
    return value if isinstance(value, dict) else None
