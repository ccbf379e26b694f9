"""Going on after a service was away: how long to try, how long to pause, and streams that resume by themselves."""

import logging
import random
import time
from collections.abc import Callable, Generator
from contextlib import closing
from typing import TypeVar

from fluxsmith.errors import Unavailable

_Item = TypeVar("_Item")
_log = logging.getLogger("fluxsmith")

_FIRST_DELAY_S = 0.5
_LONGEST_DELAY_S = 5.0


class Outage:
    """Decides whether and when to try again. It keeps time but does not sleep: any kind of client can use it."""

    def __init__(self, *, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_s = limit_s
        self._clock = clock
        self._began: float | None = None
        self._tries = 0

    def recovered(self) -> None:
        """Forget the outage: the service has answered with something new."""
        self._began = None
        self._tries = 0

    def next_delay_s(self, error: Unavailable) -> float:
        """Return how long to pause before the next try, or raise `error` if that try would come after the limit."""
        now = self._clock()
        if self._began is None:
            self._began = now
        backoff_s = min(_FIRST_DELAY_S * 2.0**self._tries, _LONGEST_DELAY_S)
        # Spread out, so that many clients of a restarted service do not come back all at once.
        delay_s = max(backoff_s * random.uniform(0.5, 1.0), error.retry_after_s or 0.0)  # noqa: S311
        if now - self._began + delay_s > self._limit_s:
            raise error
        self._tries += 1
        _log.warning("%s; trying again in %.1f s", error.message.rstrip("."), delay_s)
        return delay_s


def resuming(
    open_stream: Callable[[], Generator[_Item, None, None]], *, ended: Callable[[], bool], outage: Outage
) -> Generator[_Item, None, None]:
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
            raise Unavailable("the service ended the stream early.", reason="STREAM_ENDED")
        except Unavailable as error:
            time.sleep(outage.next_delay_s(error))
