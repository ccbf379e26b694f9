"""Calls that change something act once for a `request_id`, however often they come.

The identifier is stored with the digest of what was asked, in the transaction of the effect. It is kept for as long as
the job is, and for a while after that is deleted.
"""

from __future__ import annotations

import hashlib
import json
from enum import StrEnum

from sqlalchemy import Connection, RowMapping, and_, exists, select

from services.common.errors import AlreadyExists, NotReady
from services.trainer.database.database import insert_if_new
from services.trainer.database.tables import deletions, requests
from services.trainer.jobs import NewJob


class Call(StrEnum):
    """What a request asks for."""

    CREATE = "CREATE"
    CANCEL = "CANCEL"
    PAUSE = "PAUSE"
    RESUME = "RESUME"
    CHECKPOINT = "CHECKPOINT"
    DELETE = "DELETE"


def creation_digest(new: NewJob) -> str:
    """What tells one wish for a job from another.

    Not the manifests: the same request is the same job, also when a dataset was encoded again in between.
    """
    pinned = {"manifest_digest", "encoding_id"}
    asked = new.model_dump_json(exclude={"dataset": pinned, "held_out": pinned})
    return hashlib.sha256(asked.encode()).hexdigest()


def call_digest(call: Call, job_id: str, *details: str) -> str:
    """What tells one call that names a job from another."""
    return hashlib.sha256(json.dumps([call, job_id, *details]).encode()).hexdigest()


def repeated(connection: Connection, tenant: str, request_id: str, call: Call, digest: str, job_id: str) -> str | None:
    """Store a request in the caller's transaction, or return the job of the same one before; None when it is new.

    Raises `AlreadyExists` for another request with this identifier. An empty one is always new.
    """
    if not request_id:
        return None
    values = {"call": call, "payload_digest": digest, "job_id": job_id}
    if insert_if_new(connection, requests, tenant=tenant, request_id=request_id, **values):
        return None
    known = find(connection, tenant, request_id)
    if known is None:  # pragma: no cover - removed by retention in this very moment
        return None
    refuse_another(known, call, digest)
    return str(known["job_id"])


def find(connection: Connection, tenant: str, request_id: str) -> RowMapping | None:
    """The request that came with this identifier before, or None."""
    same = and_(requests.c.tenant == tenant, requests.c.request_id == request_id)
    return connection.execute(select(requests).where(same)).mappings().one_or_none()


def refuse_another(known: RowMapping, call: Call, digest: str | None = None) -> None:
    """Raise `AlreadyExists` unless the request is of this kind, and has this digest where one is given."""
    if known["call"] != call or digest not in {None, known["payload_digest"]}:
        raise request_id_reused(known["request_id"])


def refuse_deleted(connection: Connection, tenant: str, job_id: str, request_id: str) -> None:
    """Raise `NotReady` when the job that a request made has been deleted: to make another would be a surprise."""
    if was_deleted(connection, tenant, job_id):
        raise NotReady(
            f"request_id {request_id!r} made job {job_id!r}, which has been deleted",
            reason="JOB_DELETED",
            remedy="Use a new request_id to make a new job.",
        )


def was_deleted(connection: Connection, tenant: str, job_id: str) -> bool:
    """Whether the tenant had this job and deleted it."""
    tombstone = exists().where(deletions.c.job_id == job_id, deletions.c.tenant == tenant)
    return bool(connection.execute(select(tombstone)).scalar_one())


def request_id_reused(request_id: str) -> AlreadyExists:
    """The error for a `request_id` that came before with another payload."""
    return AlreadyExists(
        f"request_id {request_id!r} was used with another payload",
        reason="REQUEST_ID_REUSED",
        remedy="Use a new request_id for every new wish.",
    )
