"""The contract between encoder and trainer: whoever finds the pointer finds everything."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from services.common.cache import (
    CachedCaption,
    CachedObject,
    CachedSample,
    DatasetManifest,
    cache_prefix,
    dataset_prefix,
    publish_manifest,
    read_manifest,
    read_pointer,
)
from services.common.object_store import ObjectDamaged, ObjectMissing, ObjectStore
from tests.services.damage import damage

OBJECT = CachedObject(key="t/cache/f/latents/a.safetensors", digest="0" * 64, size_bytes=1)
CAPTION = CachedCaption(caption="a red apple", embedding=OBJECT)


def manifest_of(dataset_id: str, *, shift: float = 0.1) -> DatasetManifest:
    """A manifest of one sample."""
    sample = CachedSample(sample_name="a", height_px=64, width_px=48, latents=(OBJECT,), captions=(CAPTION,))
    return DatasetManifest(
        dataset_id=dataset_id,
        encoder_fingerprint="f" * 64,
        latent_shift=shift,
        latent_scale=0.5,
        empty_caption=CAPTION,
        samples=(sample,),
    )


def test_published_manifest_is_found_through_its_pointer(store: ObjectStore, tenant: str) -> None:
    manifest = manifest_of("ds-1")
    digest = publish_manifest(store, tenant, manifest, cached_count=1)
    pointer = read_pointer(store, tenant, "ds-1")
    assert pointer
    assert (pointer.manifest_digest, pointer.sample_count, pointer.cached_count) == (digest, 1, 1)
    assert read_manifest(store, tenant, digest) == manifest


def test_dataset_without_manifest_has_no_pointer(store: ObjectStore, tenant: str) -> None:
    assert read_pointer(store, tenant, "ds-1") is None
    with pytest.raises(ObjectMissing):
        read_manifest(store, tenant, "0" * 64)


def test_manifest_of_a_job_outlives_the_next_encoding(store: ObjectStore, tenant: str) -> None:
    old, new = manifest_of("ds-1"), manifest_of("ds-1", shift=0.2)
    digest = publish_manifest(store, tenant, old, cached_count=0)
    assert publish_manifest(store, tenant, new, cached_count=0) != digest
    assert read_manifest(store, tenant, digest) == old


def test_equal_manifests_have_equal_digests(store: ObjectStore, tenant: str) -> None:
    first, second = (publish_manifest(store, tenant, manifest_of("ds-1"), cached_count=n) for n in (0, 1))
    assert first == second


def test_damaged_manifest_is_refused(store: ObjectStore, tenant: str) -> None:
    digest = publish_manifest(store, tenant, manifest_of("ds-1"), cached_count=0)
    damage(store, f"{tenant}/manifests/{digest}.json", b"{}")
    with pytest.raises(ObjectDamaged):
        read_manifest(store, tenant, digest)


def test_every_key_begins_with_its_tenant() -> None:
    assert dataset_prefix("a", "ds-1") == "a/datasets/ds-1/"
    assert cache_prefix("a", "f" * 64).startswith("a/cache/ffff")


def test_manifest_of_another_format_version_is_refused() -> None:
    fields = manifest_of("ds-1").model_dump() | {"format_version": 2}
    with pytest.raises(ValidationError, match="format_version"):
        DatasetManifest.model_validate(fields)
