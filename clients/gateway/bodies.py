"""The body of a request that trains: its arrival within limits, and what it says, read beside the event loop."""

import asyncio
import json
from collections.abc import AsyncIterator
from email.message import Message
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Depends, Request
from pydantic import TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect

from gateway.json_shape import MAX_BYTES_BETWEEN, MAX_DEPTH, JsonShape, TooDeep, TooManyEntries, TooMuchBetween
from gateway.limits import BytesUnderWay, HeldBody
from gateway.problems import Refusal
from gateway.schemas import TrainRequest
from gateway.settings import GatewaySettings

READ_AT_ONCE = 16 * 1024
"""Bytes that are read on the event loop: a thread would cost more."""
# A sample is counted as seven entries: two texts with their names, commas, the brackets.
_ENTRIES_OF_A_SAMPLE = 8
_ENTRIES_BESIDES = 10_000

DESCRIBED: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{TrainRequest.__name__}"}}},
    }
}
"""`openapi_extra` of an endpoint that takes `TrainBody`: FastAPI describes only bodies that it reads itself."""


def described_schemas() -> dict[str, Any]:
    """The schemas that `DESCRIBED` refers to, by name."""
    schema = TypeAdapter(TrainRequest).json_schema(ref_template="#/components/schemas/{model}")
    return {**schema.pop("$defs", {}), TrainRequest.__name__: schema}


async def read_body(request: Request) -> AsyncIterator[TrainRequest]:
    """Yield what the request says; `Refusal` for what is too large, too slow, no JSON, or not as it is described."""
    settings: GatewaySettings = request.app.state.settings
    under_way: BytesUnderWay = request.app.state.bytes_under_way
    announced = _announced(request, settings)
    _require_json(request)
    with under_way.hold(announced) as held:
        request.state.held = held
        pieces = await _arrived(request, held, settings)
        if sum(map(len, pieces)) <= READ_AT_ONCE:
            yield _read(pieces, settings)
        else:
            yield await asyncio.to_thread(_read, pieces, settings)


TrainBody = Annotated[TrainRequest, Depends(read_body)]


def forget_body(request: Request, body: TrainRequest) -> None:
    """Let go of the pictures once they are sent on: what is waited for then may take hours."""
    body.train_data.clear()
    held: HeldBody = request.state.held
    held.release()


def _announced(request: Request, settings: GatewaySettings) -> int:
    said = request.headers.get("content-length", "")
    announced = int(said) if said.isdecimal() else 0
    if announced > settings.max_body_bytes:
        raise _too_large(settings)
    return announced


def _require_json(request: Request) -> None:
    said = request.headers.get("content-type")
    message = Message()
    message["Content-Type"] = said or ""
    subtype = message.get_content_subtype()
    if (
        not said
        or message.get_content_maintype() != "application"
        or not (subtype == "json" or subtype.endswith("+json"))
    ):
        raise Refusal(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"the body came as {said}, not as JSON." if said else "the body came without a Content-Type.",
            reason="CONTENT_TYPE_NOT_JSON",
            remedy="Send the header `Content-Type: application/json`.",
        )


async def _arrived(request: Request, held: HeldBody, settings: GatewaySettings) -> list[bytes]:
    """Return the pieces of the body once it is whole, having counted them on the way."""
    shape = JsonShape(max_entries=_ENTRIES_OF_A_SAMPLE * settings.max_samples + _ENTRIES_BESIDES)
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(settings.body_s):
            async for piece in request.stream():
                size += len(piece)
                if size > settings.max_body_bytes:
                    raise _too_large(settings)
                held.add(len(piece))
                shape.feed(piece)
                pieces.append(piece)
    except TimeoutError as error:
        raise Refusal(
            HTTPStatus.REQUEST_TIMEOUT,
            f"the body had not arrived whole after {settings.body_s:g} s.",
            reason="BODY_TOO_SLOW",
            remedy="Send smaller pictures, or raise FLUXSMITH_GATEWAY_BODY_S.",
        ) from error
    except ClientDisconnect as error:
        raise _not_json("the body ended before it was whole.", remedy="Send it again.") from error
    except TooDeep as error:
        raise _too_deep() from error
    except (TooManyEntries, TooMuchBetween) as error:
        raise _too_dense(error, settings) from error
    return pieces


def _read(pieces: list[bytes], settings: GatewaySettings) -> TrainRequest:
    """Return what the body says. `pieces` is empty then: in each form that it goes through it may have 100 MB."""
    content = b"".join(pieces)
    pieces.clear()
    given = _parsed(content)
    samples = given.get("train_data") if isinstance(given, dict) else None
    if isinstance(samples, list) and len(samples) > settings.max_samples:
        raise Refusal(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"train_data has {len(samples)} samples, and may have {settings.max_samples}.",
            reason="TOO_MANY_SAMPLES",
            remedy="Send fewer, or raise FLUXSMITH_GATEWAY_MAX_SAMPLES.",
        )
    try:
        return TrainRequest.model_validate(given)
    except ValidationError as error:
        raise Refusal.of_fields(error.errors(include_url=False, include_input=False), within=("body",)) from error


def _parsed(content: bytes) -> Any:
    try:
        text = content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise _not_json("the body is no text in UTF-8.") from error
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise _not_json(f"the body is no JSON: {error.msg}, line {error.lineno} column {error.colno}.") from error
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:
        # Of a whole number that Python reads no further.
        remedy = "Send a body as /openapi.json describes it."
        raise _not_json("the body is JSON with a number of too many digits.", remedy=remedy) from error


def _not_json(detail: str, *, remedy: str = "Send JSON in UTF-8.") -> Refusal:
    return Refusal(HTTPStatus.BAD_REQUEST, detail, reason="BODY_NOT_JSON", remedy=remedy)


def _too_deep() -> Refusal:
    return _not_json(
        f"the body is JSON that is nested too deeply, over {MAX_DEPTH} levels.",
        remedy="Send a body as /openapi.json describes it.",
    )


def _too_large(settings: GatewaySettings) -> Refusal:
    return Refusal(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the body has more than {settings.max_body_bytes} bytes.",
        reason="BODY_TOO_LARGE",
        remedy="Send fewer or smaller pictures, or raise FLUXSMITH_GATEWAY_MAX_BODY_BYTES.",
    )


def _too_dense(error: Exception, settings: GatewaySettings) -> Refusal:
    if isinstance(error, TooMuchBetween):
        detail = f"the body has more than {MAX_BYTES_BETWEEN} bytes outside of its texts."
        remedy = "Send it without spaces between its entries."
    else:
        most = _ENTRIES_OF_A_SAMPLE * settings.max_samples + _ENTRIES_BESIDES
        detail = f"the body has more than {most} entries, counting names, texts, commas and brackets."
        remedy = f"Send at most {settings.max_samples} samples, or raise FLUXSMITH_GATEWAY_MAX_SAMPLES."
    return Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail, reason="TOO_MANY_ENTRIES", remedy=remedy)
