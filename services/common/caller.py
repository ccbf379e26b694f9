"""Who calls: read from the metadata of every RPC, so that every row and every object key has a tenant."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from services.common.errors import FieldViolation, InvalidInput

TENANT_KEY = "fluxsmith-tenant"
TOKEN_KEY = "authorization"  # noqa: S105 - the name of a header
DEFAULT_TENANT = "default"
_TENANT = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class Caller:
    """The tenant that a call is made for."""

    tenant: str


def caller_from(metadata: Iterable[tuple[str, str | bytes]]) -> Caller:
    """Read the caller from a call's metadata; raises `InvalidInput` for a malformed tenant, or two of them."""
    metadata = tuple(metadata)
    for key in (TENANT_KEY, TOKEN_KEY):
        _refuse_repeated(key, sum(name == key for name, _ in metadata))
    tenant = next((str(value) for key, value in metadata if key == TENANT_KEY), DEFAULT_TENANT)
    if not _TENANT.fullmatch(tenant):
        raise InvalidInput(
            f"metadata {TENANT_KEY} is {tenant!r}",
            reason="TENANT_INVALID",
            remedy="Use 1 to 63 characters of a-z, 0-9 and '-', with no '-' at either end.",
            violations=(FieldViolation(field=f"metadata.{TENANT_KEY}", description="not a tenant name"),),
        )
    return Caller(tenant=tenant)


def _refuse_repeated(key: str, count: int) -> None:
    """Two values may come of a proxy that adds the true one to the caller's own: neither is to be believed."""
    if count > 1:
        raise InvalidInput(
            f"metadata {key} comes {count} times",
            reason="METADATA_REPEATED",
            remedy="Send it once; a proxy that sets it must replace what the caller sent.",
            violations=(FieldViolation(field=f"metadata.{key}", description=f"comes {count} times"),),
        )
