"""Who gives his place on a full worker to a job that waits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from services.trainer.database.claims import Waiting
from services.trainer.jobs import Job


def to_send_away(
    waiting: Waiting, jobs: Sequence[Job], of_tenants: Mapping[str, int], of_users: Mapping[tuple[str, str], int]
) -> Job | None:
    """Which of a full worker's `jobs`, longest there first, is to give its place to the next in line; None for none.

    One of lower priority in the same tenant; else one of a tenant that has at least two active jobs more than that of
    the one who waits, or of a user of the same tenant and priority who has: afterwards it is no worse off than them.
    """
    lower = [job for job in jobs if job.tenant == waiting.tenant and job.priority < waiting.priority]
    if lower:
        return min(lower, key=lambda job: job.priority)

    def has_two_more(job: Job) -> bool:
        if job.tenant != waiting.tenant:
            return of_tenants.get(job.tenant, 0) >= waiting.tenant_active + 2
        equal = job.priority == waiting.priority
        return equal and of_users.get((job.tenant, job.user_id), 0) >= waiting.user_active + 2

    def most(job: Job) -> tuple[int, int, int]:
        return of_tenants.get(job.tenant, 0), of_users.get((job.tenant, job.user_id), 0), -job.priority

    return max(filter(has_two_more, jobs), key=most, default=None)
