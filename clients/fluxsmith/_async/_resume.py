"""Streams that resume by themselves after a service was away."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

from fluxsmith._async._runtime import sleep
from fluxsmith._outage import Outage
from fluxsmith.errors import Unavailable

_Item = TypeVar("_Item")


async def resuming(
    open_stream: Callable[[], AsyncGenerator[_Item]], *, ended: Callable[[], Awaitable[bool]], outage: Outage
) -> AsyncGenerator[_Item]:
    """Yield from a stream, opened again whenever it breaks, until it ends and `ended()` agrees.

    `open_stream` must go on after what was yielded last. Raises `Unavailable` when the outage has lasted too long.
    """
    newest: _Item | None = None
    while True:
        try:
            async with aclosing(open_stream()) as stream:
                async for item in stream:
                    # A service that says the same again and breaks again has not recovered.
                    if item != newest:
                        outage.recovered()
                        newest = item
                    yield item
            if await ended():
                return
            message, remedy = "the service ended the stream early.", "Try again; see that the service still runs."
            raise Unavailable(message, reason="STREAM_ENDED", remedy=remedy)
        except Unavailable as error:
            await sleep(outage.next_delay_s(error))
