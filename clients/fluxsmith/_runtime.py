"""All that differs between the two clients beside `await`: this half waits in the caller's own thread."""

from __future__ import annotations  # the call types of grpc are generic in its type stubs only

import threading
import time
from collections.abc import Callable, Iterator
from typing import Concatenate, ParamSpec, TypeVar

import grpc

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

sleep = time.sleep


class CallEnded(BaseException):
    """Never raised here: the other client's calls end so when their channel is closed."""


def being_cancelled() -> bool:
    """Whether somebody cancels the task that asks; here there are no tasks."""
    return False


def in_thread(function: Callable[_Given, _Answer], *given: _Given.args, **named: _Given.kwargs) -> _Answer:
    """Run what blocks: here in the thread that asks for it."""
    return function(*given, **named)


def stoppable(
    function: Callable[Concatenate[threading.Event, _Given], _Answer], *given: _Given.args, **named: _Given.kwargs
) -> _Answer:
    """Run what blocks long; the event that it looks at is never set, since an interrupt reaches it by itself."""
    return function(threading.Event(), *given, **named)


def begin(
    method: grpc.StreamUnaryMultiCallable[_Request, _Response],
    requests: Iterator[_Request],
    metadata: tuple[tuple[str, str], ...],
) -> grpc.Future[_Response]:
    """Begin to stream requests, taken from a thread of gRPC's own, and return at once."""
    return method.future(requests, metadata=metadata)


def outcome(call: grpc.Future[_Response]) -> _Response:
    """Wait for the answer to what `begin` began."""
    return call.result()
