"""One way around an RPC's handler, whichever of the four kinds it is: for interceptors."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any

Around = Callable[[Any, Any], AbstractAsyncContextManager[Any]]
"""Takes a request, or the stream of them, and its context; gives what the handler gets. The whole call is within it."""


def wrapped(handler: Any, around: Around) -> Any:
    """The handler with every call of it inside of `around`."""
    kinds: dict[str, Callable[[Any, Around], Any]] = {
        "unary_unary": _unary,
        "stream_unary": _unary,
        "unary_stream": _stream,
        "stream_stream": _stream,
    }
    behaviours = {kind: getattr(handler, kind) for kind in kinds}
    return handler._replace(**{kind: kinds[kind](call, around) for kind, call in behaviours.items() if call})


def _unary(behaviour: Callable[[Any, Any], Awaitable[Any]], around: Around) -> Any:
    async def call(request: Any, context: Any) -> Any:
        async with around(request, context) as admitted:
            return await behaviour(admitted, context)

    return call


def _stream(behaviour: Callable[[Any, Any], AsyncGenerator[Any, None]], around: Around) -> Any:
    async def call(request: Any, context: Any) -> AsyncGenerator[Any, None]:
        # Closed with this stream, not when the collector comes by: it may hold something until then.
        async with around(request, context) as admitted, aclosing(behaviour(admitted, context)) as responses:
            async for response in responses:
                yield response

    return call
