"""Checkpoints, pauses, priorities, shares, what was asked of jobs, and what is left of deleted ones."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add to the tables what jobs of before are taken to have had, and make the new ones."""
    _add("priority", sa.Integer(), before="0")
    _add("lost", sa.Integer(), before="0")
    _add("checkpoint_step", sa.Integer(), before="0")
    _add("checkpoint_wanted", sa.Boolean(), before=sa.false())
    _add("discard_checkpoints", sa.Boolean(), before=sa.false())
    _add("first_sequence", sa.BigInteger(), before="1")
    op.add_column("jobs", sa.Column("progress_time_s", sa.Float))
    op.add_column("jobs", sa.Column("step_time_s", sa.Float))
    op.add_column("jobs", sa.Column("lease_s", sa.Float))
    op.add_column("jobs", sa.Column("artifacts", sa.JSON))
    op.add_column("jobs", sa.Column("last_write_id", sa.String(32)))
    op.create_index("jobs_by_user", "jobs", ["tenant", "state", "user_id"])
    op.add_column("requests", sa.Column("call", sa.String(16), nullable=False, server_default="CREATE"))
    op.create_index("requests_by_job", "requests", ["job_id"])
    _make_tables()


def _add(name: str, kind: sa.types.TypeEngine[Any], *, before: Any) -> None:
    op.add_column("jobs", sa.Column(name, kind, nullable=False, server_default=before))


def _make_tables() -> None:
    op.create_table(
        "checkpoints",
        sa.Column("job_id", sa.String(40), sa.ForeignKey("jobs.job_id", ondelete="CASCADE"), primary_key=True),
        sa.Column("checkpoint_id", sa.String(64), primary_key=True),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("create_time_s", sa.Float, nullable=False),
        sa.Column("record", sa.JSON, nullable=False),
    )
    op.create_table(
        "deletions",
        sa.Column("job_id", sa.String(40), primary_key=True),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("time_s", sa.Float, nullable=False),
    )
    op.create_table(
        "tenant_shares",
        sa.Column("tenant", sa.String(63), primary_key=True),
        sa.Column("served_s", sa.Float, nullable=False),
    )
    op.create_table(
        "user_shares",
        sa.Column("tenant", sa.String(63), primary_key=True),
        sa.Column("user_id", sa.String(64), primary_key=True),
        sa.Column("served_s", sa.Float, nullable=False),
    )
