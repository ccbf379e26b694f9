"""All that differs between the two clients beside `await`: this half runs in an event loop and never blocks it."""

from __future__ import annotations  # the call types of grpc are generic in its type stubs only

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

import grpc

if TYPE_CHECKING:
    from fluxsmith.v1.encoder_pb2_grpc import EncoderServiceAsyncStub as EncoderStub
    from fluxsmith.v1.trainer_pb2_grpc import TrainerServiceAsyncStub as TrainerStub
else:  # at run time one class serves both kinds of channel
    from fluxsmith.v1.encoder_pb2_grpc import EncoderServiceStub as EncoderStub
    from fluxsmith.v1.trainer_pb2_grpc import TrainerServiceStub as TrainerStub

__all__ = [
    "CallEnded",
    "EncoderStub",
    "TrainerStub",
    "begin",
    "being_cancelled",
    "in_thread",
    "outcome",
    "sleep",
    "stoppable",
]

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_Given = ParamSpec("_Given")
_Answer = TypeVar("_Answer")

sleep = asyncio.sleep
CallEnded = asyncio.CancelledError
"""What a call under way raises when its channel is closed, and also when the task that waits for it is cancelled."""


def being_cancelled() -> bool:
    """Whether somebody cancels the task that asks."""
    task = asyncio.current_task()
    return task is not None and bool(task.cancelling())


async def in_thread(function: Callable[_Given, _Answer], *given: _Given.args, **named: _Given.kwargs) -> _Answer:
    """Run what blocks, such as reading a file, beside the event loop."""
    return await asyncio.to_thread(function, *given, **named)


async def stoppable(
    function: Callable[Concatenate[threading.Event, _Given], _Answer], *given: _Given.args, **named: _Given.kwargs
) -> _Answer:
    """Run what blocks long, beside the event loop; it looks at the event, which is set when the caller is cancelled."""
    stop = threading.Event()
    try:
        return await asyncio.to_thread(function, stop, *given, **named)
    finally:
        stop.set()


def begin(
    method: grpc.aio.StreamUnaryMultiCallable[_Request, _Response],
    requests: AsyncIterator[_Request],
    metadata: tuple[tuple[str, str], ...],
) -> grpc.aio.StreamUnaryCall[_Request, _Response]:
    """Begin to stream requests and return at once."""
    return method(requests, metadata=metadata)


async def outcome(call: grpc.aio.StreamUnaryCall[_Request, _Response]) -> _Response:
    """Wait for the answer to what `begin` began."""
    return await call
