"""The contract between encoder and trainer: a manifest that lists every cached tensor of a dataset, and their names.

The encoder writes the tensors first, then the manifest under its own digest, then the pointer that makes the dataset
READY; so whoever finds the pointer finds everything. A job remembers the digest and so trains on what it was created
for, whatever happens to the dataset afterwards.
"""

from __future__ import annotations

import hashlib
from typing import Literal

from pydantic import BaseModel, ConfigDict

from services.common.object_store import ObjectMissing, ObjectStore

FORMAT_VERSION: Literal[1] = 1

# Names of tensors inside the cached safetensors objects.
LATENT_MEAN = "mean"  # (16, height/8, width/8), VAE output: shift and scale not applied
LATENT_LOGVAR = "logvar"  # the same shape: logarithm of the posterior's variance
T5_EMBEDDING = "t5"  # (tokens, width of T5), padded to the full length, unmasked
CLIP_POOLED = "clip_pooled"  # (width of CLIP,)
LATENTS = "latents"  # (16, height/8, width/8), model space: for DecodeLatents


class _Contract(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CachedObject(_Contract):
    """One object: its key, the sha256 of its bytes in hexadecimal, its size."""

    key: str
    digest: str
    size_bytes: int


class CachedCaption(_Contract):
    """A caption and its embeddings (`t5`, `clip_pooled`)."""

    caption: str
    embedding: CachedObject


class CachedSample(_Contract):
    """An image, cropped to `height_px` x `width_px`, with its captions. `latents` has one object for each variant."""

    sample_name: str
    height_px: int
    width_px: int
    latents: tuple[CachedObject, ...]
    captions: tuple[CachedCaption, ...]


class DatasetManifest(_Contract):
    """Everything a job needs to know of a dataset. `latent_shift` and `latent_scale` are the VAE's, not yet applied."""

    format_version: Literal[1] = FORMAT_VERSION
    dataset_id: str
    encoder_fingerprint: str
    latent_shift: float
    latent_scale: float
    empty_caption: CachedCaption
    samples: tuple[CachedSample, ...]


class ManifestPointer(_Contract):
    """What makes a dataset READY: the digest of its manifest, who encoded it, and counts for people."""

    manifest_digest: str
    encoder_fingerprint: str
    sample_count: int
    cached_count: int


def dataset_prefix(tenant: str, dataset_id: str) -> str:
    """Where everything of a dataset but its tensors lies."""
    return f"{tenant}/datasets/{dataset_id}/"


def cache_prefix(tenant: str, encoder_fingerprint: str) -> str:
    """Where the tensors of one encoder lie."""
    return f"{tenant}/cache/{encoder_fingerprint[:32]}/"


def publish_manifest(store: ObjectStore, tenant: str, manifest: DatasetManifest, *, cached_count: int) -> str:
    """Write manifest and pointer, in this order; return the manifest's digest."""
    prefix = dataset_prefix(tenant, manifest.dataset_id)
    data = manifest.model_dump_json(indent=1).encode()
    digest = hashlib.sha256(data).hexdigest()
    store.put(_manifest_key(tenant, digest), data, content_type="application/json")
    pointer = ManifestPointer(
        manifest_digest=digest,
        encoder_fingerprint=manifest.encoder_fingerprint,
        sample_count=len(manifest.samples),
        cached_count=cached_count,
    )
    store.put(f"{prefix}manifest.json", pointer.model_dump_json().encode(), content_type="application/json")
    return digest


def read_pointer(store: ObjectStore, tenant: str, dataset_id: str) -> ManifestPointer | None:
    """The pointer of a READY dataset, or None."""
    try:
        data = store.get(f"{dataset_prefix(tenant, dataset_id)}manifest.json")
    except ObjectMissing:
        return None
    return ManifestPointer.model_validate_json(data)


def read_manifest(store: ObjectStore, tenant: str, digest: str) -> DatasetManifest:
    """The manifest with this digest; raises `ObjectMissing` or `ObjectDamaged`."""
    data = store.get(_manifest_key(tenant, digest), digest=digest)
    return DatasetManifest.model_validate_json(data)


def _manifest_key(tenant: str, digest: str) -> str:
    # Not under the dataset's prefix: a job keeps its manifest when the dataset is deleted.
    return f"{tenant}/manifests/{digest}.json"
