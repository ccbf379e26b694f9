"""Who is next.

Tenants share evenly; within a tenant the highest priority goes first; among jobs of one priority a tenant's users share
evenly; then the oldest goes first.

A job's place among its user's is how many of that user's jobs are active or ahead of it, and likewise among its
tenant's. A claim turns one that is ahead into one that is active, so places stay: `position` is the number of claims
that come before a job's own as long as nothing else happens.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, and_, func, not_, or_, select

from services.trainer.database.rows import HELD, lease_from_the_future, lease_ran_out
from services.trainer.database.tables import jobs, now_s, tenant_shares, user_shares
from services.trainer.jobs import JobState

LONGEST_DELAY_S = 3600.0
"""The longest that a released job waits; one that seems to wait longer is from before the clock was set back."""


def claimable(retry_delay_s: float) -> ColumnElement[bool]:
    """Whether a worker may take the job now: it waits, or it was abandoned, the longer ago the more often it was."""
    waited = or_(jobs.c.not_before_s <= now_s(), jobs.c.not_before_s > now_s() + LONGEST_DELAY_S)
    rested = or_(jobs.c.lease_until_s + retry_delay_s * jobs.c.lost < now_s(), lease_from_the_future())
    abandoned = and_(jobs.c.state == JobState.RUNNING, lease_ran_out(), rested)
    return or_(and_(jobs.c.state == JobState.QUEUED, waited), abandoned)


def suspect(max_attempts: int) -> ColumnElement[bool]:
    """Whether the job may be what kills workers: one was lost over it, or would cost it its last attempt but one."""
    return or_(jobs.c.lost > 0, and_(jobs.c.state == JobState.RUNNING, jobs.c.lost + 2 >= max_attempts))


def first(
    connection: Connection, *, retry_delay_s: float, among: ColumnElement[bool] | None = None
) -> RowMapping | None:
    """`job_id`, `state`, `epoch` and `lost` of the job that is next, of those `among` which it is to be; or None."""
    waits = claimable(retry_delay_s)
    line = _line(waits if among is None else and_(waits, among)).subquery()
    head = select(line.c.job_id).order_by(line.c.place).limit(1).scalar_subquery()
    query = select(jobs.c.job_id, jobs.c.state, jobs.c.epoch, jobs.c.lost).where(jobs.c.job_id == head)
    return connection.execute(query).mappings().one_or_none()


def position(connection: Connection, job_id: str) -> int:
    """How many jobs are claimed before this one; 0 for one that does not wait."""
    waits = or_(jobs.c.state == JobState.QUEUED, and_(jobs.c.state == JobState.RUNNING, lease_ran_out()))
    line = _line(waits).subquery()
    place = connection.execute(select(line.c.place).where(line.c.job_id == job_id)).scalar()
    return place - 1 if place else 0


def _line(waits: ColumnElement[bool]) -> Select[tuple[str, int]]:
    """`job_id` and `place` (from 1) of the jobs that wait."""
    live = and_(jobs.c.state.in_(HELD), not_(lease_ran_out()))
    of_users = (
        select(jobs.c.tenant, jobs.c.user_id, func.count().label("active"))
        .where(live)
        .group_by(jobs.c.tenant, jobs.c.user_id)
        .cte("of_users")
    )
    of_tenants = (
        select(of_users.c.tenant, func.sum(of_users.c.active).label("active"))
        .group_by(of_users.c.tenant)
        .cte("of_tenants")
    )
    among_users = (
        select(
            jobs.c.job_id,
            jobs.c.tenant,
            jobs.c.user_id,
            jobs.c.priority,
            jobs.c.create_time_s,
            func.row_number()
            .over(
                partition_by=(jobs.c.tenant, jobs.c.user_id),
                order_by=(jobs.c.priority.desc(), jobs.c.create_time_s, jobs.c.job_id),
            )
            .label("number"),
        )
        .where(waits)
        .cte("among_users")
    )
    one = among_users.c
    same_user = and_(of_users.c.tenant == one.tenant, of_users.c.user_id == one.user_id)
    its_share = and_(user_shares.c.tenant == one.tenant, user_shares.c.user_id == one.user_id)
    user_place = func.coalesce(of_users.c.active, 0) + one.number
    user_served_s = func.coalesce(user_shares.c.served_s, 0.0)
    among_tenants = (
        select(
            one.job_id,
            one.tenant,
            one.create_time_s,
            func.row_number()
            .over(
                partition_by=one.tenant,
                order_by=(one.priority.desc(), user_place, user_served_s, one.create_time_s, one.job_id),
            )
            .label("number"),
        )
        .select_from(among_users.outerjoin(of_users, same_user).outerjoin(user_shares, its_share))
        .cte("among_tenants")
    )
    two = among_tenants.c
    tenant_place = func.coalesce(of_tenants.c.active, 0) + two.number
    tenant_served_s = func.coalesce(tenant_shares.c.served_s, 0.0)
    return select(
        two.job_id,
        func.row_number().over(order_by=(tenant_place, tenant_served_s, two.create_time_s, two.job_id)).label("place"),
    ).select_from(
        among_tenants.outerjoin(of_tenants, of_tenants.c.tenant == two.tenant).outerjoin(
            tenant_shares, tenant_shares.c.tenant == two.tenant
        )
    )
