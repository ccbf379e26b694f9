"""Every RPC of both services, read from their descriptors, and calls of them with any bytes and metadata."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from fluxsmith.v1 import encoder_pb2, trainer_pb2
from google.protobuf.descriptor import MethodDescriptor
from google.rpc import error_details_pb2
from grpc_status import rpc_status

Metadata = Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Rpc:
    """An RPC of `service`, which is `encoder` or `trainer`."""

    service: str
    method: MethodDescriptor

    def __str__(self) -> str:
        return f"{self.service}.{self.method.name}"

    def call(self, channel: grpc.Channel, requests: Sequence[bytes], metadata: Metadata, *, timeout_s: float) -> Any:
        """Begin a call that sends these messages; of an RPC without a stream of requests, the first."""
        path = f"/{self.method.containing_service.full_name}/{self.method.name}"
        kind = f"{_kind(self.method.client_streaming)}_{_kind(self.method.server_streaming)}"
        begin: Any = getattr(channel, kind)(path)
        sent = iter(requests) if self.method.client_streaming else requests[0]
        if self.method.server_streaming:
            return begin(sent, metadata=metadata, timeout=timeout_s)
        return begin.future(sent, metadata=metadata, timeout=timeout_s)


def _kind(streaming: bool) -> str:
    return "stream" if streaming else "unary"


RPCS = [
    Rpc(service=service, method=method)
    for service, module in (("encoder", encoder_pb2), ("trainer", trainer_pb2))
    for described in module.DESCRIPTOR.services_by_name.values()
    for method in described.methods
]


def reason_of(call: Any) -> tuple[grpc.StatusCode, str]:
    """How a call ended, and the reason that came with that; waits for it."""
    code: grpc.StatusCode = call.code()
    status = rpc_status.from_call(call) if code is not grpc.StatusCode.OK else None
    info = error_details_pb2.ErrorInfo()
    told: Iterable[Any] = status.details if status else ()
    return code, info.reason if any(detail.Unpack(info) for detail in told) else ""
