"""The contract between encoder and trainer: whoever finds the pointer finds everything."""

from __future__ import annotations

import hashlib

import pytest

from services.common.cache import (
    CachedCaption,
    CachedObject,
    CachedSample,
    CachedVariant,
    CachedView,
    DatasetManifest,
    ManifestPointer,
    Revision,
    cache_prefix,
    dataset_prefix,
    part_ends_at,
    publish_manifest,
    read_manifest,
    read_pointer,
)
from services.common.errors import NotReady
from services.common.object_store import ObjectDamaged, ObjectMissing, ObjectStore
from tests.services.damage import damage

OBJECT = CachedObject(key="t/cache/f/latents/a.safetensors", digest="0" * 64, size_bytes=1)
CAPTION = CachedCaption(caption="a red apple", embedding=OBJECT)
VIEW = CachedView(height_px=64, width_px=48, variants=(CachedVariant(latents=OBJECT),))


def manifest_of(*, shift: float = 0.1, samples: int = 1) -> DatasetManifest:
    """A manifest of a few samples."""
    return DatasetManifest(
        encoder_fingerprint="f" * 64,
        latent_shift=shift,
        latent_scale=0.5,
        empty_caption=CAPTION,
        samples=tuple(CachedSample(sample_name=f"{n}", views=(VIEW,), captions=(CAPTION,)) for n in range(samples)),
    )


def publish(store: ObjectStore, tenant: str, manifest: DatasetManifest) -> str:
    """Write a manifest as the encoder does."""
    samples = [sample.model_dump_json().encode() for sample in manifest.samples]
    return publish_manifest(store, tenant, manifest, samples)


def point(store: ObjectStore, tenant: str, digest: str, revision: str) -> None:
    """Make a manifest the result for one revision of dataset ds-1."""
    pointer = ManifestPointer(
        manifest_digest=digest, encoder_fingerprint="f", revision=revision, sample_count=1, cached_count=1
    )
    store.put(f"{dataset_prefix(tenant, 'ds-1')}manifest.json", pointer.model_dump_json().encode())


@pytest.mark.parametrize("samples", [1, 3])
def test_published_manifest_is_read_as_it_was(store: ObjectStore, tenant: str, samples: int) -> None:
    manifest = manifest_of(samples=samples)
    assert read_manifest(store, tenant, publish(store, tenant, manifest)) == manifest


def test_pointer_holds_for_the_samples_that_were_encoded_only(store: ObjectStore, tenant: str) -> None:
    point(store, tenant, publish(store, tenant, manifest_of()), "")
    assert read_pointer(store, tenant, "ds-1")  # nothing was changed ever
    store.put(f"{dataset_prefix(tenant, 'ds-1')}revision.json", Revision(token="2").model_dump_json().encode())
    assert read_pointer(store, tenant, "ds-1") is None
    point(store, tenant, "0" * 64, "2")
    assert read_pointer(store, tenant, "ds-1")


def test_dataset_without_manifest_has_no_pointer(store: ObjectStore, tenant: str) -> None:
    assert read_pointer(store, tenant, "ds-1") is None
    with pytest.raises(ObjectMissing):
        read_manifest(store, tenant, "0" * 64)


def test_manifest_of_a_job_outlives_the_next_encoding(store: ObjectStore, tenant: str) -> None:
    old, new = manifest_of(), manifest_of(shift=0.2)
    digest = publish(store, tenant, old)
    assert publish(store, tenant, new) != digest
    assert read_manifest(store, tenant, digest) == old


def test_manifest_names_every_object_that_it_needs() -> None:
    mask, latents = OBJECT.model_copy(update={"key": "m"}), OBJECT.model_copy(update={"key": "l"})
    view = VIEW.model_copy(update={"variants": (CachedVariant(latents=latents, mask=mask),)})
    sample = manifest_of().samples[0].model_copy(update={"views": (view, VIEW)})
    keys = [cached.key for cached in manifest_of().model_copy(update={"samples": (sample,)}).objects()]
    assert sorted(keys) == sorted([OBJECT.key, "l", "m", OBJECT.key, OBJECT.key])


def test_parts_are_short_at_first_and_end_where_longer_ones_do() -> None:
    ends = [count for count in range(1, 161) if part_ends_at(count)]
    assert ends[:3] == [4, 8, 12]
    assert ends[15:] == [64, 96, 128, 160]


def test_damaged_manifest_is_refused(store: ObjectStore, tenant: str) -> None:
    digest = publish(store, tenant, manifest_of())
    damage(store, f"{tenant}/manifests/{digest}.json", b"{}")
    with pytest.raises(ObjectDamaged):
        read_manifest(store, tenant, digest)


def test_every_key_begins_with_its_tenant() -> None:
    assert dataset_prefix("a", "ds-1") == "a/datasets/ds-1/"
    assert cache_prefix("a", "f" * 64).startswith("a/cache/ffff")


def test_manifest_of_another_format_version_asks_to_encode_again(store: ObjectStore, tenant: str) -> None:
    data = manifest_of().model_dump_json().replace('"format_version":2', '"format_version":1').encode()
    digest = hashlib.sha256(data).hexdigest()
    store.put(f"{tenant}/manifests/{digest}.json", data)
    with pytest.raises(NotReady, match="earlier version") as caught:
        read_manifest(store, tenant, digest)
    assert "Encode the dataset again" in caught.value.remedy
