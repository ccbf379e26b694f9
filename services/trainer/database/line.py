"""Who is next.

Tenants share evenly; within a tenant the highest priority goes first; among jobs of one priority a tenant's users share
evenly; then the oldest goes first.

A job's place among its user's is how many of that user's jobs are active or ahead of it, and likewise among its
tenant's. A claim turns one that is ahead into one that is active, so places stay: `position` is the number of claims
that come before a job's own as long as nothing else happens.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from sqlalchemy import CTE, ColumnElement, Connection, RowMapping, Select, and_, func, literal, not_, or_, select

from services.trainer.database.rows import HELD, lease_from_the_future, lease_ran_out
from services.trainer.database.tables import jobs, now_s, tenant_shares, user_shares
from services.trainer.jobs import JobState

LONGEST_DELAY_S = 3600.0
"""The longest that a released job waits; one that seems to wait longer is from before the clock was set back."""
_GROUP = (jobs.c.tenant, jobs.c.user_id, jobs.c.priority)
_TOLD = (jobs.c.job_id, jobs.c.state, jobs.c.epoch, jobs.c.lost, *_GROUP)


def claimable(retry_delay_s: float) -> ColumnElement[bool]:
    """Whether a worker may take the job now: it waits, or it was abandoned, the longer ago the more often it was."""
    waited = or_(jobs.c.not_before_s <= now_s(), jobs.c.not_before_s > now_s() + LONGEST_DELAY_S)
    rested = or_(jobs.c.lease_until_s + retry_delay_s * jobs.c.lost < now_s(), lease_from_the_future())
    abandoned = and_(jobs.c.state == JobState.RUNNING, lease_ran_out(), rested)
    return or_(and_(jobs.c.state == JobState.QUEUED, waited), abandoned)


def suspect(max_attempts: int) -> ColumnElement[bool]:
    """Whether the job may be what kills workers: one was lost over it, or would cost it its last attempt but one."""
    return or_(jobs.c.lost > 0, and_(jobs.c.state == JobState.RUNNING, jobs.c.lost + 2 >= max_attempts))


def first(connection: Connection, *, retry_delay_s: float, among: ColumnElement[bool]) -> RowMapping | None:
    """What a claim must know of the job that is next, of those `among` which it is to be; None when there is none.

    Only the oldest job of each user and priority can be next, so that a long line need not be put in order.
    """
    waits = and_(claimable(retry_delay_s), among)
    oldest = (
        select(*_GROUP, func.min(jobs.c.create_time_s).label("create_time_s"), literal(1).label("number"))
        .where(waits)
        .group_by(*_GROUP)
        .cte("oldest")
    )
    line = _line(oldest, "create_time_s").subquery()
    same = and_(*(jobs.c[name] == line.c[name] for name in ("tenant", "user_id", "priority", "create_time_s")))
    query = select(*_TOLD).join(line, same)
    head = query.where(line.c.place == 1, waits).order_by(jobs.c.job_id).limit(1)
    return connection.execute(head).mappings().one_or_none()


def active_counts(connection: Connection) -> tuple[dict[str, int], dict[tuple[str, str], int]]:
    """How many jobs workers have of each tenant, and of each tenant and user; no entry where it is none."""
    of_users, _ = _active()
    users = {(tenant, user_id): active for tenant, user_id, active in connection.execute(select(of_users)).all()}
    tenants = Counter[str]()
    for (tenant, _), active in users.items():
        tenants[tenant] += active
    return dict(tenants), users


def position(connection: Connection, job_id: str) -> int:
    """How many jobs are claimed before this one; 0 for one that does not wait."""
    its_users_first = (jobs.c.priority.desc(), jobs.c.create_time_s, jobs.c.job_id)
    number = func.row_number().over(partition_by=(jobs.c.tenant, jobs.c.user_id), order_by=its_users_first)
    numbered = (
        select(jobs.c.job_id, *_GROUP, jobs.c.create_time_s, number.label("number"))
        .where(or_(jobs.c.state == JobState.QUEUED, and_(jobs.c.state == JobState.RUNNING, lease_ran_out())))
        .cte("numbered")
    )
    line = _line(numbered, "create_time_s", "job_id").subquery()
    place = connection.execute(select(line.c.place).where(line.c.job_id == job_id)).scalar()
    return place - 1 if place else 0


def _line(waiting: CTE, *age: str) -> Select[Any]:
    """What waits, with its `place` in line from 1; what is alike in everything, `age` included, has the same place.

    `waiting` has `tenant`, `user_id`, `priority`, the columns of `age`, and the `number` of a job among its user's.
    """
    of_users, of_tenants = _active()
    one = waiting.c
    same_user = and_(of_users.c.tenant == one.tenant, of_users.c.user_id == one.user_id)
    its_share = and_(user_shares.c.tenant == one.tenant, user_shares.c.user_id == one.user_id)
    user_place = func.coalesce(of_users.c.active, 0) + one.number
    user_served_s = func.coalesce(user_shares.c.served_s, 0.0)
    in_tenant = func.rank().over(
        partition_by=one.tenant, order_by=(one.priority.desc(), user_place, user_served_s, *(one[name] for name in age))
    )
    in_tenants = (
        select(*(each for each in one if each is not one.number), in_tenant.label("number"))
        .select_from(waiting.outerjoin(of_users, same_user).outerjoin(user_shares, its_share))
        .cte("in_tenants")
    )
    two = in_tenants.c
    tenant_place = func.coalesce(of_tenants.c.active, 0) + two.number
    tenant_served_s = func.coalesce(tenant_shares.c.served_s, 0.0)
    place = func.rank().over(order_by=(tenant_place, tenant_served_s, *(two[name] for name in age)))
    same_tenant, their_share = of_tenants.c.tenant == two.tenant, tenant_shares.c.tenant == two.tenant
    return select(*two, place.label("place")).select_from(
        in_tenants.outerjoin(of_tenants, same_tenant).outerjoin(tenant_shares, their_share)
    )


def _active() -> tuple[CTE, CTE]:
    """How many jobs of each user and of each tenant workers have, where there are any."""
    of_users = (
        select(jobs.c.tenant, jobs.c.user_id, func.count().label("active"))
        .where(jobs.c.state.in_(HELD), not_(lease_ran_out()))
        .group_by(jobs.c.tenant, jobs.c.user_id)
        .cte("of_users")
    )
    of_tenants = (
        select(of_users.c.tenant, func.sum(of_users.c.active).label("active"))
        .group_by(of_users.c.tenant)
        .cte("of_tenants")
    )
    return of_users, of_tenants
