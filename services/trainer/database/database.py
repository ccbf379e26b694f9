"""A job database that is open: reading and writing transactions, brought up to date, its errors in our words."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Connection, Engine, Table, create_engine, event, func, literal, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from services.common.errors import Unavailable

BUSY_TIMEOUT_S = 10.0
IDLE_TIMEOUT_S = 5.0
"""How long PostgreSQL lets a transaction do nothing: a process that is frozen in one holds locks that others need.

Shorter than a lease and than the patience of those who wait for such a lock.
"""
KEEPALIVES = {"idle": 5, "interval": 5, "count": 2}  # in s, s and unanswered probes: when either side is gone
PAGES_KB = 128
"""Pages that each connection to SQLite keeps, 2 MB unless told: with tens of connections a server would grow by that
much each as the database does. The system's cache has them anyway."""
JOURNAL_BYTES = 64 * 2**20  # what SQLite's journal shrinks to
MIGRATION_LOCK = 0x666C7578  # any number that nobody else in the database locks by


class Database:
    """A job database in SQLite or PostgreSQL. Safe to use from several threads and processes."""

    def __init__(self, url: str) -> None:
        with translated():
            self.writer, self.reader = open_engines(url)
        # SQLite has one writer at a time, and who waits for it in the database only asks again now and then.
        self._turn = threading.Lock() if self.writer.dialect.name == "sqlite" else None

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection for single reading statements; raises `Unavailable`."""
        with translated(), self.reader.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A connection in a transaction that is committed at the end; raises `Unavailable`, then nothing was done."""
        if self._turn and not self._turn.acquire(timeout=BUSY_TIMEOUT_S):
            raise unavailable("others have been writing to it for too long")
        try:
            with translated(), self.writer.begin() as connection:
                yield connection
        finally:
            if self._turn:
                self._turn.release()

    def close(self) -> None:
        """Close the connections that are not in use."""
        self.writer.dispose()
        self.reader.dispose()


def insert_if_new(connection: Connection, table: Table, **values: Any) -> bool:
    """Insert a row unless there is one with its key; return whether it was new.

    While another transaction is inserting the same key, this waits for its end.
    """
    if connection.dialect.name == "postgresql":
        query = postgresql.insert(table).values(**values).on_conflict_do_nothing().returning(literal(1))
    else:
        query = sqlite.insert(table).values(**values).on_conflict_do_nothing().returning(literal(1))
    return connection.execute(query).first() is not None


def unavailable(cause: str, *, detail: str = "") -> Unavailable:
    """The error for a database that does not do what it is asked for now. What it says itself may name its host."""
    return Unavailable(
        f"the job database does not serve: {cause}",
        reason="DATABASE_UNAVAILABLE",
        remedy="Check FLUXSMITH_TRAINER_DATABASE_URL, that its server runs and that its disk has room.",
        detail=detail,
    )


@contextmanager
def translated() -> Iterator[None]:
    """Raise `Unavailable` for what the database could not do, such as with a full disk or while it is locked."""
    try:
        yield
    except IntegrityError:
        raise  # an error of ours, not an outage
    except SQLAlchemyError as error:
        said = str(error).splitlines()[0]
        of_sqlite = isinstance(getattr(error, "orig", None), sqlite3.Error)  # which has no host that it could name
        raise unavailable(said if of_sqlite else type(error).__name__, detail="" if of_sqlite else said) from error


def open_engines(database_url: str) -> tuple[Engine, Engine]:
    """Engines for writing transactions and for single reading statements; brings the tables up to date."""
    url = make_url(database_url)
    if url.get_backend_name() == "sqlite" and url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    writer = create_engine(url, pool_pre_ping=True, connect_args=_patience(url))
    reader = create_engine(url, pool_pre_ping=True, connect_args=_patience(url), isolation_level="AUTOCOMMIT")
    if url.get_backend_name() == "sqlite":
        event.listen(writer, "connect", _set_up_sqlite)
        event.listen(reader, "connect", _set_up_sqlite)
        event.listen(writer, "begin", _begin_immediate)
    with writer.begin() as connection:
        migrate(connection)
    return writer, reader


def migrate(connection: Connection, revision: str = "head") -> None:
    """Apply the migrations that are missing, in the caller's transaction; processes that start together take turns."""
    if connection.dialect.name == "postgresql":  # SQLite's transaction has the lock to begin with
        connection.execute(select(func.pg_advisory_xact_lock(MIGRATION_LOCK)))
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def _patience(url: URL) -> dict[str, Any]:
    """How long a connection waits for a server that does not answer and for a lock, and the server for a client."""
    if url.get_backend_name() != "postgresql":
        return {}
    wait_s = int(BUSY_TIMEOUT_S)
    of_session = {
        "lock_timeout": f"{wait_s}s",
        "idle_in_transaction_session_timeout": f"{int(IDLE_TIMEOUT_S * 1000)}ms",
        **{f"tcp_keepalives_{name}": value for name, value in KEEPALIVES.items()},
    }
    return {
        "connect_timeout": wait_s,
        "tcp_user_timeout": wait_s * 1000,
        **{f"keepalives_{name}": value for name, value in KEEPALIVES.items()},
        "options": " ".join(f"-c {name}={value}" for name, value in of_session.items()),
    }


def _set_up_sqlite(connection: Any, record: object) -> None:  # noqa: ARG001
    connection.isolation_level = None  # the driver must not begin transactions by itself
    for setting in (
        f"busy_timeout={int(BUSY_TIMEOUT_S * 1000)}",
        "journal_mode=WAL",
        f"journal_size_limit={JOURNAL_BYTES}",
        "synchronous=FULL",
        "foreign_keys=ON",
        f"cache_size=-{PAGES_KB}",
    ):
        _set(connection, setting)


def _set(connection: Any, setting: str) -> None:
    """Execute a PRAGMA, again for `BUSY_TIMEOUT_S` while others hold the lock.

    SQLite itself does not wait, whatever its timeout, where two connections turn a new database to WAL at once.
    """
    deadline_s = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute(f"PRAGMA {setting}")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline_s:
                raise
            time.sleep(0.01)
        else:
            return


def _begin_immediate(connection: Any) -> None:
    # Take the write lock at once: a transaction that reads first and is then refused could not simply wait.
    connection.exec_driver_sql("BEGIN IMMEDIATE")
