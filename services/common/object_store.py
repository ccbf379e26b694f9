"""The object store: everything of any size lives here, in one bucket of an S3 server, reached through the minio SDK.

Keys begin with the tenant:

    {tenant}/datasets/{dataset}/...                what a user uploaded
    {tenant}/cache, manifests, encodings, holds    what was encoded (cache.py)
    {tenant}/jobs/{job}/...                        what a job made
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

import urllib3
from minio import Minio
from minio.deleteobjects import DeleteObject
from minio.error import MinioException, S3Error

from services.common.errors import ServiceError, Unavailable
from services.common.settings import StoreSettings

T = TypeVar("T")

RETRY_S = 1.0
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

    Raises `Unavailable` when the server does not answer, `get` and `put` only after trying for `patience_s` seconds.
    """

    def __init__(self, settings: StoreSettings, *, patience_s: float = 0.0) -> None:
        self._bucket = settings.bucket
        self._endpoint = settings.endpoint
        self._patience_s = patience_s
        self._client = _minio_client(settings, settings.endpoint)
        self._public_client = _minio_client(settings, settings.public_endpoint or settings.endpoint)

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
        """Write an object whole, replacing what was there, and return once it is durable.

        `digest` is that of the data, for who knows it already.
        """
        digest = digest or hashlib.sha256(data).hexdigest()
        self._patiently(lambda: self._put_once(key, data, content_type, {DIGEST_METADATA: digest}))
        return StoredObject(key=key, digest=digest, size_bytes=len(data))

    def get(self, key: str, *, digest: str | None = None) -> bytes:
        """Read an object whole. With `digest`, raise `ObjectDamaged` unless the bytes have it."""
        data, _ = self._patiently(lambda: self._get_once(key))
        if digest is not None and hashlib.sha256(data).hexdigest() != digest:
            raise ObjectDamaged(key)
        return data

    def get_verified(self, key: str) -> bytes:
        """Read an object whole; raise `ObjectDamaged` unless it has the digest that was noted when it was written."""
        data, written = self._patiently(lambda: self._get_once(key))
        if hashlib.sha256(data).hexdigest() != written:
            raise ObjectDamaged(key)
        return data

    def exists(self, key: str) -> bool:
        """Whether there is an object under this key."""
        try:
            with self._translated(key):
                self._client.stat_object(self._bucket, key)
        except ObjectMissing:
            return False
        return True

    def keys(self, prefix: str, *, start_after: str | None = None) -> Iterator[str]:
        """Keys under a prefix in order, all levels, read page by page."""
        for entry in self.listed(prefix, start_after=start_after):
            yield entry.key

    def listed(self, prefix: str, *, start_after: str | None = None) -> Iterator[ListedObject]:
        """Objects under a prefix by key, all levels, read page by page."""
        with self._translated(prefix):
            for entry in self._client.list_objects(self._bucket, prefix, recursive=True, start_after=start_after):
                if entry.object_name and entry.last_modified:
                    yield ListedObject(key=entry.object_name, size_bytes=entry.size or 0, changed=entry.last_modified)

    def folders(self, prefix: str) -> Iterator[str]:
        """Names one level below a prefix that ends in `/`, in order."""
        with self._translated(prefix):
            for entry in self._client.list_objects(self._bucket, prefix):
                if entry.is_dir and entry.object_name:
                    yield entry.object_name.removeprefix(prefix).rstrip("/")

    def delete(self, key: str) -> None:
        """Remove an object; no error when there is none."""
        with self._translated(key):
            self._client.remove_object(self._bucket, key)

    def delete_prefix(self, prefix: str) -> None:
        """Remove everything under a prefix."""
        with self._translated(prefix):
            keys = [DeleteObject(key) for key in self.keys(prefix)]
            failures = list(self._client.remove_objects(self._bucket, keys))
        if failures:
            raise Unavailable(
                f"the store did not delete {len(failures)} objects under {prefix!r}: {failures[0]}",
                reason="STORE_UNAVAILABLE",
                remedy="Try again.",
            )

    def download_url(self, key: str, lifetime: timedelta) -> str:
        """An address from which anyone can GET the object until `lifetime` has passed."""
        return self._public_client.presigned_get_object(self._bucket, key, expires=lifetime)

    def upload_url(self, key: str, lifetime: timedelta) -> str:
        """An address to which anyone can PUT the object, replacing what was there, until `lifetime` has passed."""
        return self._public_client.presigned_put_object(self._bucket, key, expires=lifetime)

    def _put_once(self, key: str, data: bytes, content_type: str, metadata: dict[str, str]) -> None:
        with self._translated(key):
            self._client.put_object(
                self._bucket, key, io.BytesIO(data), len(data), content_type=content_type, metadata=dict(metadata)
            )

    def _get_once(self, key: str) -> tuple[bytes, str | None]:
        with self._translated(key):
            response = self._client.get_object(self._bucket, key)
            try:
                return response.read(), response.headers.get(DIGEST_METADATA)
            finally:
                response.close()
                response.release_conn()

    def _patiently(self, action: Callable[[], T]) -> T:
        deadline_s = time.monotonic() + self._patience_s
        while True:
            try:
                return action()
            except Unavailable:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(RETRY_S)

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        try:
            yield
        except S3Error as error:
            if error.code in {"NoSuchKey", "NoSuchObject", "ResourceNotFound"}:
                raise ObjectMissing(key) from error
            raise self._unavailable(error) from error
        except ValueError as error:  # how the SDK refuses a key that is none
            raise ObjectMissing(key) from error
        except (urllib3.exceptions.HTTPError, MinioException, OSError) as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> Unavailable:
        cause = getattr(error, "reason", None) or error  # what urllib3 gave up on, without its tale of retries
        what = error.code if isinstance(error, S3Error) else type(cause).__name__
        return Unavailable(
            f"the object store at {self._endpoint} does not serve ({what})",
            reason="STORE_UNAVAILABLE",
            remedy="Check that the store runs and that FLUXSMITH_STORE_* name it and its credentials; then try again.",
        )


def _minio_client(settings: StoreSettings, endpoint: str) -> Minio:
    return Minio(
        endpoint,
        access_key=settings.access_key,
        secret_key=settings.secret_key.get_secret_value(),
        secure=settings.secure,
        region="us-east-1",  # known, so that the client never asks for it
        http_client=urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=3, read=20),
            maxsize=16,
            retries=urllib3.Retry(total=2, backoff_factor=0.2, status_forcelist=[500, 502, 503, 504]),
        ),
    )
