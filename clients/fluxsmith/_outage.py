"""Going on after a service was away: how long to try and how long to pause."""

import logging
import random
import time
from collections.abc import Callable

from fluxsmith.errors import Unavailable
from fluxsmith.policies import RetryPolicy

_log = logging.getLogger("fluxsmith")


class Outage:
    """Decides whether and when to try again. It keeps time but does not sleep: either kind of client can use it."""

    def __init__(self, policy: RetryPolicy, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._policy = policy
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
        backoff_s = min(self._policy.first_delay_s * 2.0**self._tries, self._policy.longest_delay_s)
        # Spread out, so that many clients of a restarted service do not come back all at once.
        delay_s = max(backoff_s * random.uniform(0.5, 1.0), error.retry_after_s or 0.0)  # noqa: S311
        if now - self._began + delay_s > self._policy.outage_s:
            raise error
        self._tries += 1
        _log.warning("%s; trying again in %.1f s", error.message.rstrip("."), delay_s)
        return delay_s
