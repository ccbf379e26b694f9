"""How files travel between this machine and the object store: by plain HTTP, past the proxy where it cannot help."""

from urllib.parse import urlsplit
from urllib.request import OpenerDirector, ProxyHandler, build_opener

from fluxsmith._connection import is_loopback
from fluxsmith.errors import Unavailable

STALL_S = 60.0
"""How long the store may stay silent."""


def opener(url: str) -> OpenerDirector:
    """Return an opener that keeps to the configured proxy, but for this machine itself."""
    return build_opener(ProxyHandler({})) if is_loopback(urlsplit(url).hostname or "") else build_opener()


def store_away(url: str, *, again: str) -> Unavailable:
    """Return the error for a store that broke off or did not answer; `again` is what to do once it is back."""
    message = f"the object store at {urlsplit(url).netloc} broke off or cannot be reached."
    remedy = f"See that the store runs and that this address is right from here, then {again} again."
    return Unavailable(message, reason="STORE_UNREACHABLE", remedy=remedy)
