"""The minio SDK's client with connections for an imperfect network, and the ETags that tell what was written."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import urllib3
from minio import Minio

from services.common.errors import ServiceError
from services.common.settings import StoreSettings

CONNECT_S = 3.0
READ_S = 20.0
PIECE_BYTES = 256 << 10  # of a body on its way: what the time limit of a connection is for


def s3_client(settings: StoreSettings, endpoint: str) -> Minio:
    """A client of the S3 server at `endpoint` that tries twice more what fails at once and waits 20 s for answers.

    Raises `ServiceError` without credentials.
    """
    if not (settings.access_key and settings.secret_key.get_secret_value()):
        name = "SECRET_KEY" if settings.access_key else "ACCESS_KEY"
        raise ServiceError(
            f"FLUXSMITH_STORE_{name} is empty, and the object store at {endpoint} asks for credentials",
            reason="SETTINGS_INVALID",
            remedy="Set FLUXSMITH_STORE_ACCESS_KEY and FLUXSMITH_STORE_SECRET_KEY to those of the store.",
        )
    return Minio(
        endpoint,
        access_key=settings.access_key,
        secret_key=settings.secret_key.get_secret_value(),
        secure=settings.secure,
        region="us-east-1",  # known, so that the client never asks for it
        http_client=_Connections(
            timeout=urllib3.Timeout(connect=CONNECT_S, read=READ_S),
            maxsize=16,
            blocksize=PIECE_BYTES,
            retries=_Retry(total=2, backoff_factor=0.2, status_forcelist=[500, 502, 503, 504]),
        ),
    )


class Parts(io.BytesIO):
    """Data that the SDK reads part by part, and what ETag an S3 server gives to what it read."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._digests: list[bytes] = []

    def read(self, size: int | None = -1, /) -> bytes:
        """The next part. Those before it are on their way meanwhile, so that its digest costs no time of its own."""
        part = super().read(size)
        self._digests.append(_md5(part).digest())
        return part

    @property
    def etag(self) -> str:
        """The MD5 of an object in one part, or that of the parts' MD5s and their count."""
        if len(self._digests) > 1:
            return f"{_md5(b''.join(self._digests)).hexdigest()}-{len(self._digests)}"
        return self._digests[0].hex() if self._digests else _md5(b"").hexdigest()


def _md5(data: bytes) -> hashlib._Hash:
    return hashlib.md5(data, usedforsecurity=False)


class _Retry(urllib3.Retry):
    """Tries again at once what failed at once. A server that hangs is left to the caller's patience."""

    def increment(self, *args: Any, **kwargs: Any) -> _Retry:
        """As urllib3 does, but a time limit that has run out is raised as it is."""
        error = kwargs.get("error")
        if isinstance(error, urllib3.exceptions.ReadTimeoutError):
            raise error
        return super().increment(*args, **kwargs)


class _Connections(urllib3.PoolManager):
    """Connections that send a body piece by piece: sent in one, all of it had to be out within the time limit."""

    def urlopen(  # type: ignore[override] # urllib3 overrides its own in the same way
        self, method: str, url: str, redirect: bool = True, **kwargs: Any
    ) -> urllib3.BaseHTTPResponse:
        """As urllib3 does."""
        body = kwargs.get("body")
        if body and isinstance(body, bytes):  # the header that says how long an empty one is is set only for bytes
            kwargs["body"] = io.BytesIO(body)
        return super().urlopen(method, url, redirect, **kwargs)
