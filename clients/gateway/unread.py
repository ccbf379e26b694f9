"""What a refused request still sends is thrown away for a while, so that its sender gets to read why.

A connection that is closed with bytes unread is reset, and the answer is lost on whoever sends a body whole before
reading, as Python's urllib does.
"""

import asyncio
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES = 256 * 1024 * 1024
"""Bytes of one request that are thrown away: twice the largest body that is taken by default."""
LONGEST_S = 5.0
"""Seconds for which they are."""
SHORT_BYTES = 64 * 1024
"""Up to here a body that nobody reads has ended soon, and its connection is kept for the next request."""


class ReadToTheEnd:
    """ASGI middleware: answers at once, and ends the connection of a long body after the rest of it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; after its answer read what was left of its body."""
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
            await self._app(scope, receive, send)
            return
        whole = False

        async def noting() -> Message:
            nonlocal whole
            message = await receive()
            whole = not message.get("more_body", False)
            return message

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start" and not (whole or _is_short(headers)):
                MutableHeaders(scope=message)["Connection"] = "close"  # else uvicorn reads on without an end
            if message["type"] != "http.response.body" or message.get("more_body", False) or whole:
                await send(message)
                return
            # The server closes the connection once it has the last of the answer.
            await send({**message, "more_body": True})
            await _throw_away(receive)
            await send({"type": "http.response.body", "body": b""})

        await self._app(scope, noting, sending)


def _is_short(headers: Headers) -> bool:
    length = headers.get("content-length", "")
    return length.isdecimal() and int(length) <= SHORT_BYTES


async def _throw_away(receive: Receive) -> None:
    """Read until the body's end, the sender's, or a bound."""
    size = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(LONGEST_S):
            while size <= MOST_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
