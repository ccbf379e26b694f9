"""What keeps pages in a browser from using the gateway in their reader's name: Host, Origin, and headers of answers.

A browser on a machine that reaches the gateway lets any page send it requests. One whose name was made to lead here
(DNS rebinding) comes with its own Host; any other comes with an Origin that is not the gateway's.
"""

from dataclasses import dataclass
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway import problems
from gateway.settings import GatewaySettings, host_and_port, name_and_port

_SAFE = {"GET", "HEAD", "OPTIONS"}
_OF_THE_SAME = {"same-origin", "none"}
_DEFAULT_PORTS = {"http": 80, "https": 443}
_LOOPBACK = ("localhost", "127.0.0.1", "::1")

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Headers of every answer that has not set them itself."""


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A name in lower case and a port; the port is None where none was said."""

    name: str
    port: int | None


class OwnPagesOnly:
    """ASGI middleware: refuses a Host that is not served, and a change that a page of another origin sends."""

    def __init__(self, app: ASGIApp, *, settings: GatewaySettings) -> None:
        self._app = app
        self._names = {*_LOOPBACK, host_and_port(settings.address)[0].lower()}
        self._public = [_Place(name=name, port=port) for name, port in map(name_and_port, settings.public_hosts)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer why not."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await (self._refusal(scope) or self._app)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        said = headers.get("host", "")
        host = _read(said)
        if host is None or len(headers.getlist("host")) > 1 or not self._serves(host, scope):
            return problems.problem(
                HTTPStatus.MISDIRECTED_REQUEST,
                f"the gateway is not known as {said!r}.",
                reason="HOST_NOT_SERVED",
                remedy="Call it by its address or as localhost, or add the name to FLUXSMITH_GATEWAY_PUBLIC_HOSTS.",
            )
        if scope["method"] in _SAFE or _has_bearer(headers) or self._is_own(headers, host):
            return None
        return problems.problem(
            HTTPStatus.FORBIDDEN,
            f"the request was sent by a page of {headers.get('origin', 'another site')!r}, not of {said!r}.",
            reason="ORIGIN_REFUSED",
            remedy="Send it from a backend or with a bearer token; if a proxy serves page and gateway under one name, "
            "add it to FLUXSMITH_GATEWAY_PUBLIC_HOSTS.",
        )

    def _serves(self, host: _Place, scope: Scope) -> bool:
        """Whether the gateway is reached by this name. Any port will do: tunnels and containers have their own."""
        if host.name in self._names or host.name == (scope.get("server") or ("",))[0]:
            return True
        return any(host.name == one.name and one.port in {None, host.port} for one in self._public)

    def _is_own(self, headers: Headers, host: _Place) -> bool:
        """Whether no browser sent the request, or a page of the gateway's own origin did."""
        if headers.get("sec-fetch-site", "same-origin") not in _OF_THE_SAME:
            return False
        origins = headers.getlist("origin")
        return all(self._is_served_origin(origin, host) for origin in origins)

    def _is_served_origin(self, origin: str, host: _Place) -> bool:
        scheme, _, rest = origin.partition("://")
        place, default = _read(rest), _DEFAULT_PORTS.get(scheme)
        if place is None or default is None:
            # Such as `null`, which pages in a sandbox send.
            return False
        return any(
            place.name == served.name and (place.port or default) == (served.port or default)
            for served in (host, *self._public)
        )


def _has_bearer(headers: Headers) -> bool:
    """Whether a token comes along, which no page can add unless the gateway allows it, and it never does."""
    return headers.get("authorization", "").lower().startswith("bearer ")


def _read(authority: str) -> _Place | None:
    """Return the two parts of `name`, `name:port` or `[::1]:port`; None for anything else."""
    try:
        name, port = name_and_port(authority)
    except ValueError:
        return None
    return _Place(name=name, port=port)
