"""A tenant's cached tensors, by what they are computed from and by what they are.

An object is called `{recipe}.{digest}`: the sha256 of everything that decides the tensor, and that of its bytes. So a
tensor is found without knowing its bytes, is checked whenever it is read, and is never overwritten by other bytes:
two encoders that compute the same recipe with different rounding leave two objects, and whoever refers to either of
them is right.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import safetensors.torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from services.common.cache import CachedObject, CachedSample, cache_prefix
from services.common.object_store import ObjectDamaged, ObjectMissing, ObjectStore
from services.encoder.inference import EncoderModels
from services.encoder.problems import Problem

SUFFIX = ".safetensors"
Recipe = Mapping[str, object]


class IndexEntry(BaseModel):
    """What a sample became, under what it was made from: saves decoding it again to learn which tensors are its."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    picture_digest: str
    sample: CachedSample
    warnings: tuple[tuple[Problem, str], ...]


@dataclass(frozen=True, kw_only=True)
class NewObject:
    """A tensor file that has been computed and is still to be written."""

    cached: CachedObject
    data: bytes


class TensorCache:
    """The tensors of one tenant and one encoder. Safe to use from several threads.

    Each kind of object has the fingerprint of what it depends on: with T5 in another precision, latents stay.
    """

    def __init__(self, store: ObjectStore, tenant: str, models: EncoderModels) -> None:
        self._store = store
        self._tenant = tenant
        self._fingerprints = {
            "latents": models.image_fingerprint,
            "masks": models.image_fingerprint,
            "captions": models.text_fingerprint,
            "samples": models.fingerprint,
        }

    def find(self, kind: str, recipe: Recipe, *, refresh: timedelta | None = None) -> CachedObject | None:
        """The object of a recipe whose bytes are those that were written, or None.

        With `refresh`, one that is older is written again: nothing else keeps it from being collected.
        """
        stem = self._stem(kind, recipe)
        for listed in self._store.listed(f"{stem}."):
            digest = listed.key.removeprefix(f"{stem}.").removesuffix(SUFFIX)
            cached = CachedObject(key=listed.key, digest=digest, size_bytes=listed.size_bytes)
            if refresh is not None and datetime.now(UTC) - listed.changed > refresh:
                try:
                    self._store.put(cached.key, self._store.get(cached.key, digest=digest))
                except (ObjectMissing, ObjectDamaged):
                    continue
            elif not self.sound(cached):
                continue
            return cached
        return None

    def sound(self, cached: CachedObject) -> bool:
        """Whether an object is there with the bytes that were written. Reads it whole."""
        try:
            return len(self._store.get(cached.key, digest=cached.digest)) == cached.size_bytes
        except (ObjectMissing, ObjectDamaged):
            return False

    def pack(self, kind: str, recipe: Recipe, tensors: Mapping[str, Tensor]) -> NewObject:
        """The file of a recipe's tensors, ready to be written."""
        data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
        digest = hashlib.sha256(data).hexdigest()
        key = f"{self._stem(kind, recipe)}.{digest}{SUFFIX}"
        return NewObject(cached=CachedObject(key=key, digest=digest, size_bytes=len(data)), data=data)

    def write(self, new: NewObject) -> None:
        """Write a packed file durably."""
        self._store.put(new.cached.key, new.data, digest=new.cached.digest)

    def entry(self, recipe: Recipe) -> IndexEntry | None:
        """What a sample became, or None. Its objects may have been lost since."""
        try:
            return IndexEntry.model_validate_json(self._store.get_verified(self._entry_key(recipe)))
        except (ObjectMissing, ObjectDamaged, ValueError):
            return None

    def write_entry(self, recipe: Recipe, entry: IndexEntry) -> None:
        """Note what a sample became."""
        self._store.put(self._entry_key(recipe), entry.model_dump_json().encode(), content_type="application/json")

    def _entry_key(self, recipe: Recipe) -> str:
        return f"{self._stem('samples', recipe)}.json"

    def _stem(self, kind: str, recipe: Recipe) -> str:
        fingerprint = self._fingerprints[kind]
        text = json.dumps({"kind": kind, "encoder": fingerprint, **recipe}, sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()
        # Three digits apart, since some stores list a whole folder to find the names that begin alike.
        return f"{cache_prefix(self._tenant, fingerprint)}{kind}/{name[:3]}/{name}"
