"""A broken disk, for tests of what happens then."""

from __future__ import annotations

import io

from services.common.object_store import DIGEST_METADATA, ObjectStore


def damage(store: ObjectStore, key: str, data: bytes = b"damaged") -> None:
    """Put other bytes under a key without touching the metadata, so that only their digest tells."""
    client, bucket = store._client, store._bucket
    written = (client.stat_object(bucket, key).metadata or {})[DIGEST_METADATA]
    client.put_object(bucket, key, io.BytesIO(data), len(data), metadata={DIGEST_METADATA: written})
