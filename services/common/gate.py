"""The gate before every RPC: who calls is looked at, and each message is read, in one place for all of them.

What it refuses is an error of the domain like any other, so it stands inside of the interceptor that makes statuses of
those. An RPC that forgets to look at its caller is guarded all the same.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from services.common.caller import caller_from
from services.common.errors import InvalidInput
from services.common.handlers import wrapped

log = logging.getLogger(__name__)

OURS = "/fluxsmith."  # health and reflection are for everybody
Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """Stands for bytes that are not a message of the kind that the RPC takes."""

    size_bytes: int


class Gate(grpc.aio.ServerInterceptor):
    """Raises `InvalidInput` for a caller that cannot be one and for bytes that are no message, also amid a stream."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Put the gate before the handler of a call, whichever of the four kinds it is."""
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None
        reading = handler._replace(request_deserializer=_reader(handler.request_deserializer))
        admit = partial(_admitted, handler_call_details.method, handler.request_streaming)
        gated: grpc.RpcMethodHandler[Any, Any] = wrapped(reading, admit)
        return gated


def _reader(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Read as before. What cannot be read is handed on, since an error here would be one of gRPC's own, UNKNOWN."""

    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            return Unreadable(size_bytes=len(data))

    return read


@asynccontextmanager
async def _admitted(method: str, streaming: bool, request: Any, context: Context) -> AsyncGenerator[Any, None]:
    """The request, or the stream of them, once the caller is what it must be."""
    if method.startswith(OURS):
        caller_from(context.invocation_metadata() or ())
    yield _messages(method, request, context) if streaming else _message(method, request, context)


async def _messages(method: str, requests: AsyncIterator[Any], context: Context) -> AsyncGenerator[Any, None]:
    async for request in requests:
        yield _message(method, request, context)


def _message(method: str, request: Any, context: Context) -> Any:
    if isinstance(request, Unreadable):
        log.warning("%s: %d bytes from %s are no message", method, request.size_bytes, context.peer())
        raise InvalidInput(
            f"{request.size_bytes} bytes are not a message of the kind that {method} takes",
            reason="MESSAGE_UNREADABLE",
            remedy="Send what the contract says, with a client of the service's version.",
        )
    return request
