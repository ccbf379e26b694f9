"""Jobs, their events, and the request identifiers that made them.

Databases of before there were migrations have exactly these tables, so they are taken as they are.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    if sa.inspect(op.get_bind()).has_table("jobs"):
        return
    op.create_table(
        "jobs",
        sa.Column("job_id", sa.String(40), primary_key=True),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("user_id", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("request", sa.JSON, nullable=False),
        sa.Column("create_time_s", sa.Float, nullable=False),
        sa.Column("start_time_s", sa.Float),
        sa.Column("end_time_s", sa.Float),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("total_steps", sa.Integer, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("owner", sa.String(120)),
        sa.Column("lease_until_s", sa.Float),
        sa.Column("not_before_s", sa.Float, nullable=False),
        sa.Column("failure", sa.JSON),
        sa.Column("result", sa.JSON),
        sa.Column("last_sequence", sa.BigInteger, nullable=False),
    )
    op.create_index("jobs_by_state", "jobs", ["state", "create_time_s"])
    op.create_index("jobs_by_tenant", "jobs", ["tenant", "create_time_s"])
    op.create_table(
        "events",
        sa.Column("job_id", sa.String(40), sa.ForeignKey("jobs.job_id", ondelete="CASCADE"), primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("time_s", sa.Float, nullable=False),
        sa.Column("event", sa.JSON, nullable=False),
    )
    op.create_table(
        "requests",
        sa.Column("tenant", sa.String(63), primary_key=True),
        sa.Column("request_id", sa.String(64), primary_key=True),
        sa.Column("payload_digest", sa.String(64), nullable=False),
        sa.Column("job_id", sa.String(40), nullable=False),
    )
