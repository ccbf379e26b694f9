"""Bytes of bodies that are in memory at once, over all requests of the process, and their bound."""

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from gateway.problems import Refusal

RETRY_AFTER_S = 5.0


class BytesUnderWay:
    """What all requests hold together: `held` bytes of `most`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.held = 0

    @contextmanager
    def hold(self, announced: int) -> Iterator["HeldBody"]:
        """Count what one request adds until the end, or raise `Refusal` when what it announces does not fit."""
        self.require_room(announced)
        body = HeldBody(self)
        try:
            yield body
        finally:
            body.release()

    def require_room(self, more: int) -> None:
        """Raise `Refusal` when that many more would be too many."""
        if self.held + more > self._most:
            raise Refusal(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"the bodies of other requests hold {self.held} of {self._most} bytes.",
                reason="GATEWAY_BUSY",
                remedy="Send it again later, or raise FLUXSMITH_GATEWAY_MAX_BYTES_UNDER_WAY.",
                retry_after_s=RETRY_AFTER_S,
            )


class HeldBody:
    """What one request holds."""

    def __init__(self, under_way: BytesUnderWay) -> None:
        self._under_way = under_way
        self._bytes = 0

    def add(self, count: int) -> None:
        """Hold that many more, or raise `Refusal`."""
        self._under_way.require_room(count)
        self._under_way.held += count
        self._bytes += count

    def release(self) -> None:
        """Hold nothing more: the body is gone from memory."""
        self._under_way.held -= self._bytes
        self._bytes = 0
