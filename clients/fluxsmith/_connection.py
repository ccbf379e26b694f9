# Made by scripts/make_sync.py from clients/fluxsmith/_async/_connection.py: change that file instead.
"""A channel to one service: who calls, how long a call may take, and errors in this library's own terms."""

from __future__ import annotations  # the call types of grpc are generic in its type stubs only

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import grpc

from fluxsmith._channel import channel_options
from fluxsmith._runtime import CallEnded, being_cancelled
from fluxsmith._status import to_error
from fluxsmith.errors import FluxsmithError
from fluxsmith.policies import Deadlines, RetryPolicy

_Stub = TypeVar("_Stub")
_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_CLOSED = "the client is closed: use it, and its jobs and datasets, within its `with` block"


class Connection(Generic[_Stub]):
    """A plain channel to the service called `service` at `address`, opened by the first use of its `stub`."""

    def __init__(
        self,
        make_stub: Callable[[grpc.Channel], _Stub],
        *,
        service: str,
        address: str,
        tenant: str,
        token: str | None,
        deadlines: Deadlines,
        retry: RetryPolicy,
    ) -> None:
        self.deadlines = deadlines
        self.retry = retry
        authorization = (("authorization", f"Bearer {token}"),) if token else ()
        self.metadata = (("fluxsmith-tenant", tenant), *authorization)
        self._make_stub = make_stub
        self._service = service
        self._address = address
        self._closed = False
        self._opening = threading.Lock()
        self._opened: tuple[grpc.Channel, _Stub] | None = None

    @property
    def stub(self) -> _Stub:
        """The methods of the service; raises `RuntimeError` once the client is closed."""
        with self._opening:
            if self._closed:
                raise RuntimeError(_CLOSED)
            if self._opened is None:
                channel = grpc.insecure_channel(self._address, options=channel_options(self._address, self.retry))
                self._opened = channel, self._make_stub(channel)
            return self._opened[1]

    def call(
        self,
        method: grpc.UnaryUnaryMultiCallable[_Request, _Response],
        request: _Request,
        *,
        timeout_s: float | None = None,
    ) -> _Response:
        """Ask once and wait for the answer, at most the deadline of a call unless given another."""
        with self.translating():
            return method(request, timeout=timeout_s or self.deadlines.call_s, metadata=self.metadata)

    def receive(
        self,
        method: grpc.UnaryStreamMultiCallable[_Request, _Response],
        request: _Request,
        *,
        timeout_s: float | None = None,
    ) -> Generator[_Response]:
        """Stream responses until the service ends the stream; closing the iterator cancels the call."""
        with self.translating():
            responses = method(request, timeout=timeout_s, metadata=self.metadata)
        try:
            with self.translating():
                yield from responses
        finally:
            responses.cancel()

    @contextmanager
    def translating(self) -> Iterator[None]:
        """Around a call under way: raises this library's errors, `RuntimeError` if the client is closed meanwhile."""
        try:
            yield
        except (grpc.RpcError, ValueError, CallEnded) as failure:  # `ValueError` is grpc's for a channel that is closed
            if self._closed and not being_cancelled():
                raise RuntimeError(_CLOSED) from None
            if isinstance(failure, grpc.RpcError):
                raise self.error(failure) from failure
            raise

    def error(self, failure: grpc.RpcError) -> FluxsmithError:
        """Translate a failed call."""
        return to_error(failure, service=self._service, address=self._address)

    def close(self) -> None:
        """Close the channel; calls under way are cancelled."""
        with self._opening:
            opened, self._opened, self._closed = self._opened, None, True
        if opened:
            opened[0].close()
