"""A limit on bodies that holds whether or not their length is announced."""

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.problems import Problem, respond


class BodyTooLarge(HTTPException):
    """More came than a body may have; of starlette's kind, so that FastAPI lets it pass while it reads a body."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(413)
        self.told = Problem(
            title="Content Too Large",
            status=413,
            detail=f"the body has more than {max_bytes} bytes.",
            reason="BODY_TOO_LARGE",
            remedy="Send fewer or smaller pictures, or raise FLUXSMITH_GATEWAY_MAX_BODY_BYTES.",
        )


class BodyLimit:
    """ASGI middleware that refuses bodies over `max_bytes`, reading no further."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, counting its body."""
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise BodyTooLarge(self._max_bytes)
            return message

        announced = dict(scope.get("headers", ())).get(b"content-length", b"")
        if announced.isdigit() and int(announced) > self._max_bytes:
            await respond(BodyTooLarge(self._max_bytes).told)(scope, receive, send)
        else:
            await self._app(scope, counted, send)
