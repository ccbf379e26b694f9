"""A channel to one service: who calls, how long a call may take, and errors in this library's own terms."""

from __future__ import annotations  # the call types of grpc are generic in its type stubs only

import json
from collections.abc import Generator, Iterator
from typing import TypeVar

import grpc

from fluxsmith._status import to_error

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

_MAX_MESSAGE_BYTES = 8 * 1024 * 1024

# Every call is safe to repeat: reads are, and creating calls carry a request_id.
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}


class Connection:
    """A plain channel to the service called `service` at `address`, opened by its first call."""

    def __init__(self, *, service: str, address: str, tenant: str, deadline_s: float) -> None:
        self._service = service
        self._address = address
        self._metadata = (("fluxsmith-tenant", tenant),)
        self._deadline_s = deadline_s
        self._closed = False
        self.channel = grpc.insecure_channel(address, options=_channel_options(address))

    def call(
        self,
        method: grpc.UnaryUnaryMultiCallable[_Request, _Response],
        request: _Request,
        *,
        timeout_s: float | None = None,
    ) -> _Response:
        """Ask once and wait for the answer, at most the default deadline unless given another."""
        self._require_open()
        try:
            return method(request, timeout=timeout_s or self._deadline_s, metadata=self._metadata)
        except grpc.RpcError as failure:
            raise to_error(failure, service=self._service, address=self._address) from failure

    def send(
        self, method: grpc.StreamUnaryMultiCallable[_Request, _Response], requests: Iterator[_Request]
    ) -> _Response:
        """Stream requests and wait for the answer. No deadline: how long it takes is up to the amount."""
        self._require_open()
        try:
            return method(requests, metadata=self._metadata)
        except grpc.RpcError as failure:
            raise to_error(failure, service=self._service, address=self._address) from failure

    def receive(
        self,
        method: grpc.UnaryStreamMultiCallable[_Request, _Response],
        request: _Request,
        *,
        timeout_s: float | None = None,
    ) -> Generator[_Response, None, None]:
        """Stream responses until the service ends the stream; closing the iterator cancels the call."""
        self._require_open()
        responses = method(request, timeout=timeout_s, metadata=self._metadata)
        try:
            yield from responses
        except grpc.RpcError as failure:
            raise to_error(failure, service=self._service, address=self._address) from failure
        finally:
            responses.cancel()

    def close(self) -> None:
        """Close the channel; calls under way are cancelled."""
        self._closed = True
        self.channel.close()

    def _require_open(self) -> None:
        if self._closed:
            raise RuntimeError("the client is closed: use it, and its jobs and datasets, within its `with` block")


def is_loopback(host: str) -> bool:
    """Whether the host is this machine, which a configured HTTP proxy could not reach."""
    return host.startswith("127.") or host in {"localhost", "::1", "[::1]"}


def _channel_options(address: str) -> list[tuple[str, str | int]]:
    host = address.rpartition(":")[0]
    return [
        ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
        ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        # The default doubles up to two minutes, during which a service that is back would go unnoticed.
        ("grpc.initial_reconnect_backoff_ms", 250),
        ("grpc.min_reconnect_backoff_ms", 5_000),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        # Notices a host that vanished without a word. Servers refuse pings more often than every five minutes.
        ("grpc.keepalive_time_ms", 310_000),
        ("grpc.enable_http_proxy", 0 if is_loopback(host) else 1),
    ]
