"""The tables behind the job database, the same in SQLite and PostgreSQL, and the clock that all who use it share.

A change here needs a migration (`migrations/versions/`): a test compares the two.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import FunctionElement

metadata = MetaData()

jobs = Table(
    "jobs",
    metadata,
    Column("job_id", String(40), primary_key=True),
    Column("tenant", String(63), nullable=False),
    Column("user_id", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("priority", Integer, nullable=False, default=0),
    Column("request", JSON, nullable=False),  # NewJob
    Column("create_time_s", Float, nullable=False),
    Column("start_time_s", Float),
    Column("end_time_s", Float),
    Column("step", Integer, nullable=False, default=0),
    Column("total_steps", Integer, nullable=False, default=0),
    Column("step_time_s", Float),
    Column("progress_time_s", Float),
    Column("attempt", Integer, nullable=False, default=0),
    Column("lost", Integer, nullable=False, default=0),  # attempts that came to nothing since the last checkpoint
    Column("epoch", Integer, nullable=False, default=0),  # counts claims; fences off whoever claimed before
    Column("owner", String(120)),
    Column("lease_s", Float),
    Column("lease_until_s", Float),
    Column("not_before_s", Float, nullable=False, default=0.0),  # a released job waits until then
    Column("checkpoint_step", Integer, nullable=False, default=0),  # of the newest checkpoint
    Column("checkpoint_wanted", Boolean, nullable=False, default=False),
    Column("last_write_id", String(32)),  # of the events that its worker wrote last
    Column("discard_checkpoints", Boolean, nullable=False, default=False),
    Column("failure", JSON(none_as_null=True)),
    Column("result", JSON(none_as_null=True)),
    Column("artifacts", JSON(none_as_null=True)),  # the newest of each name, written at the job's end
    Column("first_sequence", BigInteger, nullable=False, default=1),
    Column("last_sequence", BigInteger, nullable=False, default=0),
    Index("jobs_by_state", "state", "create_time_s"),
    Index("jobs_by_tenant", "tenant", "create_time_s"),
    Index("jobs_by_user", "tenant", "state", "user_id"),
)

events = Table(
    "events",
    metadata,
    Column("job_id", ForeignKey("jobs.job_id", ondelete="CASCADE"), primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("time_s", Float, nullable=False),
    Column("event", JSON, nullable=False),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("job_id", ForeignKey("jobs.job_id", ondelete="CASCADE"), primary_key=True),
    Column("checkpoint_id", String(64), primary_key=True),
    Column("step", Integer, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("create_time_s", Float, nullable=False),
    Column("record", JSON, nullable=False),  # Checkpoint
)

requests = Table(
    "requests",
    metadata,
    Column("tenant", String(63), primary_key=True),
    Column("request_id", String(64), primary_key=True),
    Column("call", String(16), nullable=False),
    Column("payload_digest", String(64), nullable=False),
    Column("job_id", String(40), nullable=False),
    Index("requests_by_job", "job_id"),
)

deletions = Table(  # what is left of a deleted job for a while, so that deleting it again is no error
    "deletions",
    metadata,
    Column("job_id", String(40), primary_key=True),
    Column("tenant", String(63), nullable=False),
    Column("time_s", Float, nullable=False),
)

tenant_shares = Table(
    "tenant_shares",
    metadata,
    Column("tenant", String(63), primary_key=True),
    Column("served_s", Float, nullable=False),
)

user_shares = Table(
    "user_shares",
    metadata,
    Column("tenant", String(63), primary_key=True),
    Column("user_id", String(64), primary_key=True),
    Column("served_s", Float, nullable=False),
)


class now_s(FunctionElement[float]):  # noqa: N801 - reads as an SQL function
    """Seconds since 1970 by the database's clock, the one clock that all workers share."""

    type = Float()
    inherit_cache = True


@compiles(now_s, "sqlite")
def _now_sqlite(element: now_s, compiler: Any, **options: Any) -> str:  # noqa: ARG001
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now_s, "postgresql")
def _now_postgresql(element: now_s, compiler: Any, **options: Any) -> str:  # noqa: ARG001
    return "extract(epoch from clock_timestamp())::float"
