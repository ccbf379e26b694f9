"""How files travel between this machine and the object store: by plain HTTP, past the proxy where it cannot help."""

from urllib.parse import urlsplit
from urllib.request import OpenerDirector, ProxyHandler, build_opener

from fluxsmith.errors import Unavailable


def is_loopback(host: str) -> bool:
    """Whether the host is this machine, which a configured HTTP proxy could not reach."""
    return host.startswith("127.") or host in {"localhost", "::1", "[::1]"}


def opener(url: str) -> OpenerDirector:
    """Return an opener that keeps to the configured proxy, but for this machine itself."""
    return build_opener(ProxyHandler({})) if is_loopback(urlsplit(url).hostname or "") else build_opener()


def store_away(url: str, *, again: str) -> Unavailable:
    """Return the error for a store that broke off or did not answer; `again` is what to do once it is back."""
    message = f"the object store at {urlsplit(url).netloc} broke off or cannot be reached."
    remedy = f"See that the store runs and that this address is right from here, then {again} again."
    return Unavailable(message, reason="STORE_UNREACHABLE", remedy=remedy)
