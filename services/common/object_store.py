"""The object store: everything of any size lives here, in one bucket of an S3 server, reached through the minio SDK.

Keys begin with the tenant:

    {tenant}/datasets/{dataset}/...                what a user uploaded
    {tenant}/cache, manifests, encodings, holds    what was encoded (cache.py)
    {tenant}/jobs/{job}/...                        what a job made
"""

from __future__ import annotations

import copy
import hashlib
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from http.client import HTTPException
from typing import TypeVar

import urllib3
from minio.datatypes import Object
from minio.deleteobjects import DeleteObject
from minio.error import MinioException, S3Error

from services.common.errors import ServiceError, Unavailable
from services.common.s3_client import PIECE_BYTES, Parts, s3_client
from services.common.settings import StoreSettings

T = TypeVar("T")

RETRY_S = 1.0
READS = 3  # of an object whose digest is not the right one
PART_BYTES = 16 << 20  # of an upload in parts, of which three are on their way at once
DELETE_ROUNDS = 3
DIGEST_METADATA = "x-amz-meta-sha256"


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """An object that is durably in the store: key, sha256 of its bytes in hexadecimal, size."""

    key: str
    digest: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class ListedObject:
    """An object as a listing shows it. `changed` is when it was last written, by the store's clock."""

    key: str
    size_bytes: int
    changed: datetime


class ObjectMissing(ServiceError):
    """There is nothing under this key."""

    def __init__(self, key: str) -> None:
        super().__init__(
            f"the store has no object {key[:200]!r}",
            reason="OBJECT_MISSING",
            remedy="Encode the dataset again; only what is missing is encoded.",
        )


class ObjectDamaged(ServiceError):
    """The bytes under this key are not those that were written."""

    def __init__(self, key: str, *, remedy: str = "Encode the dataset again; only what is damaged is encoded.") -> None:
        super().__init__(f"object {key!r} is not what was written there", reason="OBJECT_DAMAGED", remedy=remedy)


class ObjectStore:
    """Objects by key. Safe to use from several threads.

    Every call tries for `patience_s` seconds before it raises `Unavailable`, which says that the server does not
    answer, or that it answers with what cannot be. Between tries, a second or a hung request (20 s) apart, it calls
    `while_waiting`, which may raise to end the wait. What a listing says has no digest: that nobody changes it on its
    way is for TLS to see to.
    """

    def __init__(self, settings: StoreSettings, *, patience_s: float = 0.0) -> None:
        self._bucket = settings.bucket
        self._endpoint = settings.endpoint
        self._patience_s = patience_s
        self._while_waiting: Callable[[], None] = _nothing
        self._client = s3_client(settings, settings.endpoint)
        self._public_client = s3_client(settings, settings.public_endpoint or settings.endpoint)

    def with_patience(
        self, patience_s: float | None = None, *, while_waiting: Callable[[], None] | None = None
    ) -> ObjectStore:
        """The same store over the same connections, with another patience; None keeps that of this one."""
        other = copy.copy(self)
        other._patience_s = self._patience_s if patience_s is None else patience_s
        other._while_waiting = while_waiting or _nothing
        return other

    def ensure_bucket(self) -> None:
        """Make the bucket unless it is there."""
        with self._translated(self._bucket):
            if not self._client.bucket_exists(self._bucket):
                self._client.make_bucket(self._bucket)

    def uri(self, key: str) -> str:
        """The `s3://` address of a key."""
        return f"s3://{self._bucket}/{key}"

    def key_of(self, uri: str) -> str | None:
        """The key behind an address of this store, or None for an address of another."""
        prefix = f"s3://{self._bucket}/"
        return uri.removeprefix(prefix) if uri.startswith(prefix) else None

    def put(
        self, key: str, data: bytes, *, content_type: str = "application/octet-stream", digest: str | None = None
    ) -> StoredObject:
        """Write an object whole, replacing what was there, and return once what is durable is known to be `data`.

        `digest` is that of the data, for who knows it already. When this raises, the key may hold the old object, the
        new one or a damaged one, which its digest tells.
        """
        digest = digest or hashlib.sha256(data).hexdigest()
        self._patiently(lambda: self._put_once(key, data, content_type, digest))
        return StoredObject(key=key, digest=digest, size_bytes=len(data))

    def get(self, key: str, *, digest: str | None = None) -> bytes:
        """Read an object whole. With `digest`, raise `ObjectDamaged` unless the bytes have it."""
        return self._read(key, (lambda _: digest) if digest is not None else None)

    def get_verified(self, key: str) -> bytes:
        """Read an object whole; raise `ObjectDamaged` unless it has the digest that was noted when it was written."""
        return self._read(key, lambda noted: noted)

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """Read `length` bytes, 1 or more, from `offset` on; fewer where the object ends before."""
        return self._patiently(lambda: self._get_range_once(key, offset, length))

    def size_bytes(self, key: str) -> int:
        """Size of the object under this key."""
        return self._patiently(lambda: self._size_once(key))

    def exists(self, key: str) -> bool:
        """Whether there is an object under this key."""
        try:
            self._patiently(lambda: self._exists_once(key))
        except ObjectMissing:
            return False
        return True

    def keys(self, prefix: str, *, start_after: str | None = None) -> Iterator[str]:
        """Keys under a prefix in order, all levels, read page by page."""
        for entry in self.listed(prefix, start_after=start_after):
            yield entry.key

    def listed(self, prefix: str, *, start_after: str | None = None) -> Iterator[ListedObject]:
        """Objects under a prefix by key, all levels, read page by page."""
        for entry in self._entries(prefix, start_after=start_after, recursive=True):
            if entry.object_name and entry.last_modified:
                yield ListedObject(key=entry.object_name, size_bytes=entry.size or 0, changed=entry.last_modified)

    def folders(self, prefix: str) -> Iterator[str]:
        """Names one level below a prefix that ends in `/`, in order."""
        for entry in self._entries(prefix, recursive=False):
            if entry.is_dir and entry.object_name:
                yield entry.object_name.removeprefix(prefix).rstrip("/")

    def delete(self, key: str) -> None:
        """Remove an object; no error when there is none."""
        self._patiently(lambda: self._delete_once(key))

    def delete_prefix(self, prefix: str) -> None:
        """Remove everything under a prefix, and return once a listing shows nothing there."""
        self._patiently(lambda: self._delete_prefix_once(prefix))

    def download_url(self, key: str, lifetime: timedelta) -> str:
        """An address from which anyone can GET the object until `lifetime` has passed."""
        return self._public_client.presigned_get_object(self._bucket, key, expires=lifetime)

    def upload_url(self, key: str, lifetime: timedelta) -> str:
        """An address to which anyone can PUT the object, replacing what was there, until `lifetime` has passed."""
        return self._public_client.presigned_put_object(self._bucket, key, expires=lifetime)

    def _put_once(self, key: str, data: bytes, content_type: str, digest: str) -> None:
        """One upload. Servers need not compare what came with its signature, but the ETag tells what they wrote."""
        parts = Parts(data)
        with self._translated(key):
            written = self._client.put_object(
                self._bucket,
                key,
                parts,
                len(data),
                content_type=content_type,
                metadata={DIGEST_METADATA: digest},
                part_size=PART_BYTES,
            )
        if written.etag != parts.etag and self._digest_of(key) != digest:  # ETags of encrypted objects are of no kind
            raise Unavailable(
                f"the object store wrote something else than what was sent as {key!r}",
                reason="STORE_DAMAGES",
                detail=f"at {self._endpoint}",
                remedy="Try again; if it comes again, check the store's disks and memory and the network, or use TLS.",
            )

    def _digest_of(self, key: str) -> str:
        """Digest of what is there, read piece by piece."""
        digest = hashlib.sha256()
        with self._translated(key), self._opened(key) as response:
            for piece in response.stream(PIECE_BYTES):
                digest.update(piece)
        return digest.hexdigest()

    def _read(self, key: str, wanted: Callable[[str | None], str | None] | None) -> bytes:
        """The object; `wanted` gives the digest that it must have for the one that was noted with it."""
        for _ in range(READS):  # what was damaged on its way only is whole the next time
            data, noted = self._patiently(lambda: self._get_once(key))
            if wanted is None or hashlib.sha256(data).hexdigest() == wanted(noted):
                return data
            del data  # not twice in memory
        raise ObjectDamaged(key)

    def _get_once(self, key: str) -> tuple[bytes, str | None]:
        with self._translated(key), self._opened(key) as response:
            return response.read(), response.headers.get(DIGEST_METADATA)

    def _get_range_once(self, key: str, offset: int, length: int) -> bytes:
        with self._translated(key), self._opened(key, offset, length) as response:
            return response.read()

    def _size_once(self, key: str) -> int:
        with self._translated(key):
            return self._client.stat_object(self._bucket, key).size or 0

    @contextmanager
    def _opened(self, key: str, offset: int = 0, length: int = 0) -> Iterator[urllib3.BaseHTTPResponse]:
        """The object on its way, or so many bytes of it; 0 means all."""
        response = self._client.get_object(self._bucket, key, offset=offset, length=length)
        try:
            yield response
        finally:
            response.close()
            response.release_conn()

    def _exists_once(self, key: str) -> None:
        with self._translated(key):
            self._client.stat_object(self._bucket, key)

    def _delete_once(self, key: str) -> None:
        with self._translated(key):
            self._client.remove_object(self._bucket, key)

    def _delete_prefix_once(self, prefix: str) -> None:
        for _ in range(DELETE_ROUNDS):
            keys = list(self.keys(prefix))
            if all(key.endswith("/") for key in keys):  # a file server keeps empty folders
                return
            with self._translated(self._bucket):
                refused = list(self._client.remove_objects(self._bucket, [DeleteObject(key) for key in keys]))
        raise Unavailable(
            f"the store did not delete {keys[0]!r}"
            + (f" ({refused[0].code}: {refused[0].message})" if refused else ""),
            reason="STORE_UNAVAILABLE",
            remedy="Try again.",
        )

    def _entries(self, prefix: str, *, recursive: bool, start_after: str | None = None) -> Iterator[Object]:
        """What a listing shows, in order. A page that does not come whole is asked for again."""
        last = start_after

        def begun() -> Iterator[Object]:
            return iter(self._client.list_objects(self._bucket, prefix, recursive=recursive, start_after=last))

        entries = begun()

        def following() -> Object | None:
            nonlocal entries
            try:
                with self._translated(self._bucket):  # a prefix need not be a key
                    entry = next(entries, None)
                    if entry and not (entry.object_name or "").startswith(prefix):
                        raise ValueError(f"{entry.object_name!r} does not begin with {prefix!r}")
                    return entry
            except Unavailable:
                entries = begun()
                raise

        while entry := self._patiently(following):
            if entry.object_name != last:  # some servers show the folder again after which they were to begin
                last = entry.object_name
                yield entry

    def _patiently(self, action: Callable[[], T]) -> T:
        deadline_s = time.monotonic() + self._patience_s
        while True:
            try:
                return action()
            except Unavailable:
                if time.monotonic() > deadline_s:
                    raise
            self._while_waiting()
            time.sleep(RETRY_S)

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        try:
            yield
        except S3Error as error:
            if error.code in {"NoSuchKey", "NoSuchObject", "ResourceNotFound"}:
                raise ObjectMissing(key) from error
            raise self._unavailable(error) from error
        except ValueError as error:  # the SDK refuses a key that is none, or cannot read what the server said
            if not _is_key(key):
                raise ObjectMissing(key) from error
            raise self._unavailable(error) from error
        except (urllib3.exceptions.HTTPError, HTTPException, MinioException, OSError, ET.ParseError) as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> Unavailable:
        cause = getattr(error, "reason", None) or error  # what urllib3 gave up on, without its tale of retries
        what = error.code if isinstance(error, S3Error) else type(cause).__name__
        return Unavailable(
            f"the object store does not serve ({what})",
            reason="STORE_UNAVAILABLE",
            detail=f"at {self._endpoint}: {str(cause).splitlines()[0] if str(cause) else what}",
            remedy="Check that the store runs and that FLUXSMITH_STORE_* name it and its credentials; then try again.",
        )


def _nothing() -> None:
    pass


def _is_key(key: str) -> bool:
    return bool(key.strip()) and not {".", ".."} & set(key.split("/"))
