"""Set-up of a gRPC server: errors, health, reflection and graceful stop, the same for both services."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import grpc
from fluxsmith_text import on_one_line
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.common import errors
from services.common.gate import Context, Gate
from services.common.handlers import wrapped

log = logging.getLogger(__name__)

DOMAIN = "fluxsmith"
MAX_MESSAGE_BYTES = 8 * 1024 * 1024
BLOCKING_CALLS = 128  # threads are made as they are needed
DRAIN_S = 2.0
SIGNALS = (signal.SIGTERM, signal.SIGINT)
LONGEST_MESSAGE, LONGEST_TEXT = 2000, 400  # bytes; a header has 8 KiB, of which details take a third more as base64
SERVER_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),  # a port that is taken is an error, not a second server that gets half of the calls
]

STATUS_OF = {
    errors.InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.NotReady: grpc.StatusCode.FAILED_PRECONDITION,
    errors.LimitExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.ServiceError: grpc.StatusCode.DATA_LOSS,
}


Until = Callable[[], Awaitable[object]]
OnServing = Callable[[str], None]


async def serve(
    address: str,
    service_name: str,
    register: Callable[[grpc.aio.Server], None],
    *,
    on_stop: Callable[[], Awaitable[None]],
    until: Until,
    on_serving: OnServing,
) -> None:
    """Run a server on `address` until `until` returns; then say NOT_SERVING, drain the calls, call `on_stop`.

    `on_serving` is told the address, which has the port that was free where `address` has 0.
    """
    # Calls that wait for a lock or a store wait in threads; those that do not must find one nevertheless.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(BLOCKING_CALLS, thread_name_prefix="call"))
    server = grpc.aio.server(interceptors=interceptors(), options=SERVER_OPTIONS)
    register(server)
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    reflection.enable_server_reflection((service_name, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise errors.Unavailable(
            f"cannot serve on {address}: {error}",  # at its start, to who starts it
            reason="ADDRESS_UNUSABLE",
            remedy="Stop what listens there, or set another address.",
        ) from error
    await server.start()
    for name in ("", service_name):
        await health_servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    serving = f"{address.rpartition(':')[0]}:{port}"
    log.info("%s serves on %s", service_name, serving)
    on_serving(serving)
    await until()
    log.info("stopping")
    await health_servicer.enter_graceful_shutdown()
    await server.stop(DRAIN_S)  # first: a call that came later would find nobody to do its work
    await on_stop()


def interceptors() -> list[grpc.aio.ServerInterceptor]:
    """What stands before every RPC, the outermost first: all that the gate refuses becomes a status too."""
    return [ErrorInterceptor(), Gate()]


async def told_to_stop(grace_s: float) -> None:
    """Wait for SIGTERM or SIGINT; for a server that is a process of its own.

    From then on the process has `grace_s` seconds to end in order. After them, and at a second signal, it ends at once,
    whatever its threads do: what was acknowledged is in the store or the database, and what is under way is taken up
    by the next.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    told: list[int] = []

    def stop_by(signal_number: int) -> None:
        if told:
            _end_at_once(signal_number, None)
        told.append(signal_number)
        stop.set()

    for signal_number in SIGNALS:
        loop.add_signal_handler(signal_number, stop_by, signal_number)
    await stop.wait()
    for signal_number in SIGNALS:
        loop.remove_signal_handler(signal_number)
        signal.signal(signal_number, _end_at_once)  # the loop may wait for something when it comes, or have ended
    threading.Thread(target=_end_after, args=(grace_s, told[0]), name="grace", daemon=True).start()


def _end_at_once(signal_number: int, frame: object) -> None:
    del frame
    os._exit(128 + signal_number)  # without a word: whoever writes to the log may be what it waits for


def _end_after(grace_s: float, signal_number: int) -> None:
    time.sleep(grace_s)
    log.warning("not done %.0f s after it was told to stop; what is under way is given up", grace_s)
    os._exit(128 + signal_number)


def tell_nobody(address: str) -> None:
    """For a server whose address is known."""
    del address


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns errors of the domain into rich gRPC statuses, and anything else into INTERNAL with a logged traceback."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the handler of a call."""
        handler = await continuation(handler_call_details)
        guarded: grpc.RpcMethodHandler[Any, Any] | None = (
            wrapped(handler, partial(_guarded, handler_call_details.method)) if handler else None
        )
        return guarded


@asynccontextmanager
async def _guarded(method: str, request: Any, context: Context) -> AsyncGenerator[Any, None]:
    try:
        yield request
    except Exception as error:  # noqa: BLE001 - the one broad except of the process
        await _abort(context, error, method)


async def _abort(context: Context, error: Exception, method: str) -> None:
    if isinstance(error, (grpc.aio.AbortError, grpc.aio.UsageError)):
        raise error
    if not isinstance(error, errors.ServiceError):
        log.error("%s failed", method, exc_info=error)
        await context.abort(grpc.StatusCode.INTERNAL, "internal error; the service's log has the traceback")
        return
    code = next(code for kind, code in STATUS_OF.items() if isinstance(error, kind))
    if isinstance(error, errors.Unavailable) or error.detail:
        log.warning("%s: %s", method, error.log_line)
    message = cut(on_one_line(error.message), LONGEST_MESSAGE)  # it travels in a header, whose size is limited
    status = status_pb2.Status(code=code.value[0], message=message, details=_details(error))
    await context.abort(code, message, (("grpc-status-details-bin", status.SerializeToString()),))


def cut(text: str, most_bytes: int) -> str:
    """The text, or as much of its beginning as fits."""
    data = text.encode(errors="replace")
    return text if len(data) <= most_bytes else data[: most_bytes - 3].decode(errors="ignore") + "..."


def fitting(violations: Sequence[errors.FieldViolation]) -> Iterator[errors.FieldViolation]:
    """As many violations as fit into a header, each cut; the last then says how many more there are."""
    left_bytes = LONGEST_MESSAGE
    for told, violation in enumerate(violations):
        field, description = (cut(on_one_line(text), LONGEST_TEXT) for text in (violation.field, violation.description))
        left_bytes -= len(field.encode()) + len(description.encode())
        if left_bytes < 0:
            yield errors.FieldViolation(field="", description=f"and {len(violations) - told} more")
            return
        yield errors.FieldViolation(field=field, description=description)


def _details(error: errors.ServiceError) -> Sequence[any_pb2.Any]:
    messages: list[Any] = [
        error_details_pb2.ErrorInfo(
            reason=error.reason, domain=DOMAIN, metadata={"remedy": cut(on_one_line(error.remedy), LONGEST_TEXT)}
        )
    ]
    if isinstance(error, errors.InvalidInput) and error.violations:
        messages.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.description)
                    for v in fitting(error.violations)
                ]
            )
        )
    if isinstance(error, errors.QuotaExceeded):
        violation = error_details_pb2.QuotaFailure.Violation(
            subject=cut(error.subject, LONGEST_TEXT), description=cut(error.message, LONGEST_TEXT)
        )
        messages.append(error_details_pb2.QuotaFailure(violations=[violation]))
    if isinstance(error, errors.Unavailable):
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after_s * 1000))
        messages.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = [any_pb2.Any() for _ in messages]
    for target, message in zip(packed, messages, strict=True):
        target.Pack(message)
    return packed
