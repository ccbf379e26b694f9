"""The tables behind `job_store.py`, and engines for the two databases they live in: SQLite and PostgreSQL.

A change here needs a migration (`migrations/versions/`): a test compares the two.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Connection,
    Engine,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    func,
    select,
)
from sqlalchemy.engine import make_url
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import FunctionElement

BUSY_TIMEOUT_MS = 10_000
MIGRATION_LOCK = 0x666C7578  # any number that nobody else in the database locks by

metadata = MetaData()

jobs = Table(
    "jobs",
    metadata,
    Column("job_id", String(40), primary_key=True),
    Column("tenant", String(63), nullable=False),
    Column("user_id", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("request", JSON, nullable=False),  # NewJob
    Column("create_time_s", Float, nullable=False),
    Column("start_time_s", Float),
    Column("end_time_s", Float),
    Column("step", Integer, nullable=False, default=0),
    Column("total_steps", Integer, nullable=False, default=0),
    Column("attempt", Integer, nullable=False, default=0),
    Column("epoch", Integer, nullable=False, default=0),  # counts claims; fences off whoever claimed before
    Column("owner", String(120)),
    Column("lease_until_s", Float),
    Column("not_before_s", Float, nullable=False, default=0.0),  # a released job waits until then
    Column("failure", JSON),
    Column("result", JSON),
    Column("last_sequence", BigInteger, nullable=False, default=0),
    Index("jobs_by_state", "state", "create_time_s"),
    Index("jobs_by_tenant", "tenant", "create_time_s"),
)

events = Table(
    "events",
    metadata,
    Column("job_id", ForeignKey("jobs.job_id", ondelete="CASCADE"), primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("time_s", Float, nullable=False),
    Column("event", JSON, nullable=False),
)

requests = Table(
    "requests",
    metadata,
    Column("tenant", String(63), primary_key=True),
    Column("request_id", String(64), primary_key=True),
    Column("payload_digest", String(64), nullable=False),
    Column("job_id", String(40), nullable=False),
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


def open_engines(database_url: str) -> tuple[Engine, Engine]:
    """Engines for writing transactions and for single reading statements; brings the tables up to date."""
    url = make_url(database_url)
    if url.get_backend_name() == "sqlite" and url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    writer = create_engine(url, pool_pre_ping=True)
    reader = create_engine(url, pool_pre_ping=True, isolation_level="AUTOCOMMIT")
    if url.get_backend_name() == "sqlite":
        event.listen(writer, "connect", _set_up_sqlite)
        event.listen(reader, "connect", _set_up_sqlite)
        event.listen(writer, "begin", _begin_immediate)
    with writer.begin() as connection:
        migrate(connection)
    return writer, reader


def migrate(connection: Connection) -> None:
    """Apply the migrations that are missing, in the caller's transaction; processes that start together take turns."""
    if connection.dialect.name == "postgresql":  # SQLite's transaction has the lock to begin with
        connection.execute(select(func.pg_advisory_xact_lock(MIGRATION_LOCK)))
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _set_up_sqlite(connection: Any, record: object) -> None:  # noqa: ARG001
    connection.isolation_level = None  # the driver must not begin transactions by itself
    for setting in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={BUSY_TIMEOUT_MS}"):
        connection.execute(f"PRAGMA {setting}")


def _begin_immediate(connection: Any) -> None:
    # Take the write lock at once: a transaction that reads first and is then refused could not simply wait.
    connection.exec_driver_sql("BEGIN IMMEDIATE")
