"""For how long tenants and users have had the base, so that the line (`line.py`) can serve them evenly.

Start-time fair queueing (Goyal, Vin and Cheng, 1996): who comes back after having asked for nothing begins with those
who are served now, so that nobody saves up time, and what was used while nobody else wanted it is not held against him.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, Table, and_, exists, func, select, update

from services.trainer.database.database import insert_if_new
from services.trainer.database.rows import HELD
from services.trainer.database.tables import jobs, tenant_shares, user_shares
from services.trainer.jobs import JobState

_WANTS = jobs.c.state.in_((JobState.QUEUED, *HELD))  # a paused job wants nothing


def enter(connection: Connection, tenant: str, user_id: str) -> None:
    """Before a job of theirs is queued: let tenant and user begin with the others if nothing of theirs wants time yet.

    Holds the tenant's row until the end of the transaction, so that its jobs are counted one transaction at a time.
    """
    insert_if_new(connection, tenant_shares, tenant=tenant, served_s=0.0)
    connection.execute(select(tenant_shares).where(tenant_shares.c.tenant == tenant).with_for_update())
    of_tenant = jobs.c.tenant == tenant_shares.c.tenant
    _catch_up(connection, tenant_shares, tenant_shares.c.tenant == tenant, of_tenant)
    insert_if_new(connection, user_shares, tenant=tenant, user_id=user_id, served_s=0.0)
    of_user = and_(jobs.c.tenant == user_shares.c.tenant, jobs.c.user_id == user_shares.c.user_id)
    own = and_(user_shares.c.tenant == tenant, user_shares.c.user_id == user_id)
    _catch_up(connection, user_shares, own, of_user, among=user_shares.c.tenant == tenant)


def serve(connection: Connection, tenant: str, user_id: str, served_s: float) -> None:
    """Note that a job of theirs has had the base for `served_s` seconds."""
    if served_s <= 0:
        return
    of_user = and_(user_shares.c.tenant == tenant, user_shares.c.user_id == user_id)
    for table, own, key in (
        (tenant_shares, tenant_shares.c.tenant == tenant, {"tenant": tenant}),
        (user_shares, of_user, {"tenant": tenant, "user_id": user_id}),
    ):
        add = update(table).where(own).values(served_s=table.c.served_s + served_s)
        if not connection.execute(add).rowcount:  # the job is from before there were shares
            insert_if_new(connection, table, **key, served_s=0.0)
            connection.execute(add)


def _catch_up(
    connection: Connection,
    table: Table,
    own: ColumnElement[bool],
    job_of_row: ColumnElement[bool],
    *,
    among: ColumnElement[bool] | None = None,
) -> None:
    wants = exists().where(job_of_row, _WANTS)
    if connection.execute(select(table.c.served_s).where(own, wants)).first():
        return
    rows = select(func.min(table.c.served_s)).where(wants)
    everyone = select(func.max(table.c.served_s))
    if among is not None:
        rows, everyone = rows.where(among), everyone.where(among)
    lowest = connection.execute(rows).scalar()
    floor_s = connection.execute(everyone).scalar_one() if lowest is None else lowest
    connection.execute(update(table).where(own, table.c.served_s < floor_s).values(served_s=floor_s))
