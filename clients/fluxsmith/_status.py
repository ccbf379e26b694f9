"""From a gRPC status to this library's errors: the one table, and what the service says beside the status."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import grpc
from fluxsmith_text import on_one_line
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from fluxsmith.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    FieldViolation,
    FluxsmithError,
    InternalError,
    InvalidRequest,
    LimitExceeded,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    Unavailable,
    Unimplemented,
)

_DOMAIN = "fluxsmith"

_ERROR_OF_CODE: Mapping[grpc.StatusCode, type[FluxsmithError]] = MappingProxyType(
    {
        grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
        grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
        grpc.StatusCode.NOT_FOUND: NotFound,
        grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
        grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
        grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
        grpc.StatusCode.UNAUTHENTICATED: PermissionDenied,
        grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
        grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
        grpc.StatusCode.UNAVAILABLE: Unavailable,
        grpc.StatusCode.RESOURCE_EXHAUSTED: LimitExceeded,
        grpc.StatusCode.ABORTED: Unavailable,
        # This library never cancels a call whose answer it still awaits: the server did, since it stops.
        grpc.StatusCode.CANCELLED: Unavailable,
    }
)

_KINDS_OF_DETAILS = (
    error_details_pb2.ErrorInfo,
    error_details_pb2.BadRequest,
    error_details_pb2.RetryInfo,
    error_details_pb2.QuotaFailure,
)

# What gRPC says with INTERNAL or UNKNOWN when the connection, not the service, failed.
_TRANSPORT_PHRASES = ("RST_STREAM", "Stream removed", "Socket closed", "GOAWAY", "Connection reset")


def to_error(failure: grpc.RpcError, *, service: str, address: str) -> FluxsmithError:
    """Translate a failed call to `service` at `address`."""
    details = _read_details(failure)
    text = on_one_line(failure.details() or "") or f"the {service} failed with {failure.code().name}"
    info = details.get("ErrorInfo")
    if info is None or info.domain != _DOMAIN:
        return _transport_error(failure.code(), text, service=service, address=address)
    kind = _ERROR_OF_CODE.get(failure.code(), InternalError)
    reason, remedy = info.reason, on_one_line(info.metadata.get("remedy", ""))
    retry_after_s = _retry_after_s(details.get("RetryInfo"))
    if kind is LimitExceeded and (quota := details.get("QuotaFailure")):
        subject = quota.violations[0].subject if quota.violations else ""
        return QuotaExceeded(text, reason=reason, remedy=remedy, retry_after_s=retry_after_s, subject=subject)
    if kind is LimitExceeded and retry_after_s is not None:  # a limit that passes, such as a full queue
        kind = Unavailable
    if issubclass(kind, InvalidRequest):
        violations = _violations(details.get("BadRequest"))
        return kind(text, reason=reason, remedy=remedy, retry_after_s=retry_after_s, violations=violations)
    return kind(text, reason=reason, remedy=remedy, retry_after_s=retry_after_s)


def _transport_error(code: grpc.StatusCode, text: str, *, service: str, address: str) -> FluxsmithError:
    """Name a failure that did not come from the service itself but from gRPC between here and there."""
    kind = _ERROR_OF_CODE.get(code, InternalError)
    if kind is InternalError and any(phrase in text for phrase in _TRANSPORT_PHRASES):
        kind = Unavailable
    if kind is Unavailable:
        message = f"the {service} at {address} cannot be reached."
        variable = f"FLUXSMITH_{service.upper()}"
        remedy = f"Start the services: `fluxsmith up` in a checkout, or name another address ({variable})."
        return Unavailable(message, reason="SERVICE_UNREACHABLE", remedy=remedy)
    if kind is DeadlineExceeded:
        message = f"the {service} at {address} did not answer in time."
        return DeadlineExceeded(message, reason="DEADLINE_EXCEEDED", remedy="Try again; if it stays so, read its log.")
    if kind is Unimplemented:
        message = f"the {service} at {address} does not offer this call."
        remedy = "Use a service and a client of the same version, and the right address for each service."
        return Unimplemented(message, reason="UNIMPLEMENTED", remedy=remedy)
    remedy = f"Try again; if it stays so, read the {service}'s log."
    return kind(f"the {service} at {address} failed: {text}", reason=code.name, remedy=remedy)


def _read_details(failure: grpc.RpcError) -> dict[str, Any]:
    """Return the details that came with the status, by the name of their kind."""
    try:
        status = rpc_status.from_call(failure)
    except ValueError:  # details of another status than the call's own: not to be trusted
        return {}
    found: dict[str, Any] = {}
    for packed in status.details if status else ():
        for kind in _KINDS_OF_DETAILS:
            if packed.Is(kind.DESCRIPTOR):
                found[kind.DESCRIPTOR.name] = kind()
                packed.Unpack(found[kind.DESCRIPTOR.name])
    return found


def _violations(bad_request: Any) -> tuple[FieldViolation, ...]:
    if bad_request is None:
        return ()
    return tuple(
        FieldViolation(field=on_one_line(violation.field), description=on_one_line(violation.description))
        for violation in bad_request.field_violations
    )


def _retry_after_s(retry_info: Any) -> float | None:
    if retry_info is None:
        return None
    return float(retry_info.retry_delay.seconds + retry_info.retry_delay.nanos / 1e9)
