"""Who calls: tenant and token of a request, and a client that passes them on."""

from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Annotated

from fastapi import Depends, Header, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fluxsmith import AsyncClient
from fluxsmith.errors import InvalidRequest
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway import problems

_OF_THE_CALLER = ("Fluxsmith-Tenant", "Authorization")

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


class OneCaller:
    """ASGI middleware: refuses two tenants or two tokens in one request, as the services do.

    Two may come of a proxy that adds the true one to the caller's own: neither is to be believed.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer why not."""
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        for name in _OF_THE_CALLER:
            if (count := len(headers.getlist(name))) > 1:
                refusal = problems.problem(
                    HTTPStatus.BAD_REQUEST,
                    f"the header {name} comes {count} times.",
                    reason="METADATA_REPEATED",
                    remedy="Send it once; a proxy that sets it must replace what the caller sent.",
                )
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)
