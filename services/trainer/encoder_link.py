"""The worker's link to the encoder: embeddings of prompts, pictures of latents, a dataset's contact sheet.

Jobs go on without it: whatever keeps the encoder from answering is one `EncoderAway`, after a bounded time.
"""

from __future__ import annotations  # the call types of grpc are generic in its type stubs only

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import grpc
from fluxsmith.v1 import encoder_pb2 as pb
from fluxsmith.v1 import encoder_pb2_grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from services.common.caller import TENANT_KEY
from services.common.errors import ServiceError
from services.common.server import MAX_MESSAGE_BYTES

Request = TypeVar("Request")
Response = TypeVar("Response")

PING_S = 5.0
EMBED_S = 60.0  # the encoder may have to load T5 first
SHEET_S = 60.0
DECODE_S = 60.0  # a picture
CHECK_S = 0.2

CHANNEL_OPTIONS: list[tuple[str, str | int]] = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # The default doubles up to two minutes, during which an encoder that is back would go unnoticed.
    ("grpc.initial_reconnect_backoff_ms", 250),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.min_reconnect_backoff_ms", 3_000),  # also the longest that one try to connect takes
    (
        "grpc.service_config",  # all these calls are safe to repeat
        json.dumps(
            {
                "methodConfig": [
                    {
                        "name": [{}],
                        "retryPolicy": {
                            "maxAttempts": 4,
                            "initialBackoff": "0.2s",
                            "maxBackoff": "1s",
                            "backoffMultiplier": 2,
                            "retryableStatusCodes": ["UNAVAILABLE"],
                        },
                    }
                ]
            }
        ),
    ),
]


@dataclass(frozen=True, kw_only=True)
class ObjectReference:
    """An object that the encoder has put into the store: `s3://` address, sha256 in hexadecimal, size."""

    uri: str
    content_digest: str
    size_bytes: int


class EncoderAway(ServiceError):
    """The encoder did not do what it was asked for: it is away, too slow, or refuses."""

    def __init__(self, message: str, remedy: str, *, detail: str = "") -> None:
        super().__init__(message, reason="ENCODER_AWAY", remedy=remedy, detail=detail)


def nothing() -> None:
    """What is done while waiting, unless told otherwise."""


class EncoderLink:
    """Calls of the encoder at `address` for one tenant; a context manager. An encoder that comes back is found again.

    The first call connects, so a process that has one must not be forked. Every call raises `EncoderAway`. While it
    waits it calls `while_waiting` often; what that raises cancels the call.
    """

    def __init__(self, address: str, tenant: str, *, while_waiting: Callable[[], None] = nothing) -> None:
        self._address = address
        self._metadata = ((TENANT_KEY, tenant),)
        self._while_waiting = while_waiting
        # A configured proxy does not reach this machine's own addresses.
        proxy = ("grpc.enable_http_proxy", 0 if _is_loopback(address) else 1)
        self._channel = grpc.insecure_channel(address, options=[*CHANNEL_OPTIONS, proxy])
        self._stub = encoder_pb2_grpc.EncoderServiceStub(self._channel)

    def __enter__(self) -> EncoderLink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def require_up(self) -> None:
        """Ask for a sign of life; at most 5 seconds."""
        self._call(self._stub.GetCapabilities, pb.EncoderServiceGetCapabilitiesRequest(), PING_S)

    def embed(
        self, captions: Sequence[str], *, warn: Callable[[Sequence[str]], object] = tuple
    ) -> list[ObjectReference]:
        """Embeddings (`t5`, `clip_pooled`) of 1 to 64 captions, in their order.

        `warn` is called with a sentence on each part of them that the text encoders do not read.
        """
        answer = self._call(self._stub.EncodePrompts, pb.EncodePromptsRequest(captions=captions), EMBED_S)
        warn(tuple(answer.warnings))
        return _references(answer.embeddings)

    def decode(self, latents_uris: Sequence[str]) -> list[ObjectReference]:
        """PNG files of 1 to 16 objects with `latents`, in their order, each at the object's key with `.png` added."""
        request = pb.DecodeLatentsRequest(latents_uris=latents_uris)
        return _references(self._call(self._stub.DecodeLatents, request, DECODE_S * len(latents_uris)).images)

    def contact_sheet(self, dataset_id: str) -> ObjectReference:
        """PNG file of the first page of a dataset's samples, as they were encoded last."""
        request = pb.RenderContactSheetRequest(dataset_id=dataset_id)
        (sheet,) = _references([self._call(self._stub.RenderContactSheet, request, SHEET_S).image])
        return sheet

    def _call(
        self, method: grpc.UnaryUnaryMultiCallable[Request, Response], request: Request, timeout_s: float
    ) -> Response:
        call: Any = method.future(request, timeout=timeout_s, metadata=self._metadata)
        try:
            while True:
                self._while_waiting()
                try:
                    response: Response = call.result(timeout=CHECK_S)
                except grpc.FutureTimeoutError:
                    continue
                return response
        except grpc.RpcError as failure:
            raise self._away(failure) from failure
        finally:
            call.cancel()  # no effect on one that has ended

    def _away(self, failure: Any) -> EncoderAway:
        code, details = failure.code().name, (failure.details() or "no details")[:500]
        if info := _error_info(failure):  # its own words, which are for callers
            return EncoderAway(
                f"the encoder refuses ({code}: {details}; {info.reason})",
                info.metadata.get("remedy", ""),
                detail=f"at {self._address}",
            )
        state = "is too slow" if failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED else "does not answer"
        return EncoderAway(
            f"the encoder {state} ({code})",
            "Check that it runs and that FLUXSMITH_TRAINER_ENCODER_ADDRESS names it.",
            detail=f"at {self._address}: {details}",
        )


def _error_info(failure: Any) -> error_details_pb2.ErrorInfo | None:
    """What the encoder itself says of an error; None for one of the connection."""
    status = rpc_status.from_call(failure)
    info = error_details_pb2.ErrorInfo()
    return info if status and any(detail.Unpack(info) for detail in status.details) else None


def _references(messages: Iterable[pb.ObjectReference]) -> list[ObjectReference]:
    return [
        ObjectReference(uri=one.uri, content_digest=one.content_digest, size_bytes=one.size_bytes) for one in messages
    ]


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0]
    return host.startswith("127.") or host in {"localhost", "::1", "[::1]"}
