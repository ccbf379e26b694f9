"""Who calls: tenant and token of a request, and a client that passes them on."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, Header, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fluxsmith import AsyncClient
from fluxsmith.errors import InvalidRequest

_bearer = HTTPBearer(auto_error=False, description="Passed on to encoder and trainer as it is.")


async def calling_client(
    request: Request,
    fluxsmith_tenant: Annotated[
        str | None,
        Header(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", description="The tenant; else the gateway's own."),
    ] = None,
    authorization: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)] = None,
) -> AsyncIterator[AsyncClient]:
    """A client of both services for one request; connecting costs it milliseconds."""
    if request.headers.get("authorization") and not authorization:
        message, remedy = "the header Authorization has no bearer token.", "Send it as `Authorization: Bearer TOKEN`."
        raise InvalidRequest(message, reason="TOKEN_INVALID", remedy=remedy)
    token = authorization.credentials if authorization else None
    async with AsyncClient(tenant=fluxsmith_tenant, token=token) as client:
        yield client


Caller = Annotated[AsyncClient, Depends(calling_client)]
