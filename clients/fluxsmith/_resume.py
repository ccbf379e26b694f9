# Made by scripts/make_sync.py from clients/fluxsmith/_async/_resume.py: change that file instead.
"""Streams that resume by themselves after a service was away."""

from collections.abc import Callable, Generator
from contextlib import closing
from typing import TypeVar

from fluxsmith._outage import Outage
from fluxsmith._runtime import sleep
from fluxsmith.errors import Unavailable

_Item = TypeVar("_Item")


def resuming(
    open_stream: Callable[[], Generator[_Item]], *, ended: Callable[[], bool], outage: Outage
) -> Generator[_Item]:
    """Yield from a stream, opened again whenever it breaks, until it ends and `ended()` agrees.

    `open_stream` must go on after what was yielded last. Raises `Unavailable` when the outage has lasted too long.
    """
    newest: _Item | None = None
    while True:
        try:
            with closing(open_stream()) as stream:
                for item in stream:
                    # A service that says the same again and breaks again has not recovered.
                    if item != newest:
                        outage.recovered()
                        newest = item
                    yield item
            if ended():
                return
            message, remedy = "the service ended the stream early.", "Try again; see that the service still runs."
            raise Unavailable(message, reason="STREAM_ENDED", remedy=remedy)
        except Unavailable as error:
            sleep(outage.next_delay_s(error))
