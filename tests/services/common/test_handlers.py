"""A handler of any kind runs within what is put around it, from its first line to its last."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
import pytest

from services.common.handlers import wrapped

KINDS = ("unary_unary", "stream_unary", "unary_stream", "stream_stream")


async def one(request: str, context: list[str]) -> str:
    context.append(f"handles {request}")
    return request


async def several(request: str, context: list[str]) -> AsyncGenerator[str, None]:
    try:
        yield request
        yield await one(request, context)
    finally:
        context.append("closed")


@asynccontextmanager
async def around(request: str, context: list[str]) -> AsyncGenerator[str, None]:
    context.append("before")
    try:
        yield request.upper()
    finally:
        context.append("after")


def handler_of(kind: str) -> Any:
    make = getattr(grpc, f"{kind}_rpc_method_handler")
    return getattr(wrapped(make(one if kind.endswith("unary") else several), around), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_call_of_every_kind_is_within_what_is_put_around_it(kind: str) -> None:
    async def call(told: list[str]) -> Any:
        handler = handler_of(kind)
        if kind.endswith("unary"):
            return [await handler("a", told)]
        return [response async for response in handler("a", told)]

    told: list[str] = []
    assert set(asyncio.run(call(told))) == {"A"}
    assert told == ["before", "handles A", *(["closed"] if kind.endswith("stream") else []), "after"]


@pytest.mark.parametrize("kind", ["unary_stream", "stream_stream"])
def test_stream_that_nobody_reads_on_is_closed_at_once(kind: str) -> None:
    async def call(told: list[str]) -> None:
        async with aclosing(handler_of(kind)("a", told)) as responses:
            assert await anext(responses) == "A"
        assert told == ["before", "closed", "after"]

    asyncio.run(call([]))
