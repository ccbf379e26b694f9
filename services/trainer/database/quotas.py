"""How many unfinished jobs a user and a tenant may have."""

from __future__ import annotations

from fluxsmith_text import quoted
from sqlalchemy import ColumnElement, Connection, func, select

from services.common.errors import QuotaExceeded
from services.trainer.database.rows import ENDED
from services.trainer.database.tables import jobs
from services.trainer.jobs import JobState

UNFINISHED = tuple(state for state in JobState if state not in ENDED)


def refuse_over_quota(
    connection: Connection, tenant: str, user_id: str, *, max_user_jobs: int, max_tenant_jobs: int
) -> None:
    """Raise `QuotaExceeded` when one more job would be too many; 0 means no limit.

    The caller holds the tenant's row (`shares.enter`), so that nobody else counts at the same time.
    """
    of_tenant = jobs.c.tenant == tenant
    if max_tenant_jobs and (count := _unfinished(connection, of_tenant)) >= max_tenant_jobs:
        raise _exceeded("tenant", tenant, count, max_tenant_jobs)
    if max_user_jobs and (count := _unfinished(connection, of_tenant, jobs.c.user_id == user_id)) >= max_user_jobs:
        raise _exceeded("user", user_id, count, max_user_jobs)


def _unfinished(connection: Connection, *whose: ColumnElement[bool]) -> int:
    query = select(func.count()).select_from(jobs).where(jobs.c.state.in_(UNFINISHED), *whose)
    return connection.execute(query).scalar_one()


def _exceeded(kind: str, name: str, count: int, most: int) -> QuotaExceeded:
    whose = f"{kind} {quoted(name)} has" if name else "jobs without a user_id count as one user's, who has"
    return QuotaExceeded(
        f"{whose} {count} unfinished job{'s' * (count != 1)}; {most} {'is' if most == 1 else 'are'} allowed",
        reason=f"{kind.upper()}_QUOTA",
        remedy="Wait until one has ended, or cancel one; then try again.",
        subject=f"{kind}:{name}",
    )
