"""Datasets in the store: what is acknowledged is there, for its tenant only, and gone once deleted."""

from __future__ import annotations

import pytest

from services.common.cache import CachedCaption, CachedObject, DatasetManifest, publish_manifest
from services.common.errors import AlreadyExists, NotFound
from services.common.object_store import ObjectDamaged
from services.encoder.datasets import Datasets, EncodingOptions, EncodingOutcome
from tests.services.damage import damage
from tests.services.encoder.conftest import AddSample, noise_png

OPTIONS = EncodingOptions(resolution_px=64)


def publish(datasets: Datasets, tenant: str, dataset_id: str) -> None:
    """Make a dataset READY."""
    cached = CachedCaption(caption="", embedding=CachedObject(key="k", digest="0", size_bytes=1))
    manifest = DatasetManifest(
        dataset_id=dataset_id,
        encoder_fingerprint="f",
        latent_shift=0,
        latent_scale=1,
        empty_caption=cached,
        samples=(),
    )
    publish_manifest(datasets.store, tenant, manifest, cached_count=0)


def test_created_dataset_is_found(datasets: Datasets, tenant: str) -> None:
    record = datasets.create(tenant, display_name="n", request_id="")
    assert datasets.get(tenant, record.dataset_id) == record
    assert list(datasets.ids(tenant)) == [record.dataset_id]


def test_repeated_request_gives_the_same_dataset(datasets: Datasets, tenant: str) -> None:
    first, again = (datasets.create(tenant, display_name="n", request_id="r") for _ in range(2))
    assert first == again
    with pytest.raises(AlreadyExists) as caught:
        datasets.create(tenant, display_name="other", request_id="r")
    assert caught.value.reason == "REQUEST_ID_REUSED"
    assert len(list(datasets.ids(tenant))) == 1


def test_requests_without_an_id_are_all_new(datasets: Datasets, tenant: str) -> None:
    first, second = (datasets.create(tenant, display_name="n", request_id="") for _ in range(2))
    assert first.dataset_id != second.dataset_id


def test_tenants_do_not_see_each_other(datasets: Datasets, tenant: str, dataset_id: str) -> None:
    with pytest.raises(NotFound):
        datasets.get(f"{tenant}-other", dataset_id)
    assert list(datasets.ids(f"{tenant}-other")) == []
    made = datasets.create(f"{tenant}-other", display_name="n", request_id="r")
    assert made.dataset_id != datasets.create(tenant, display_name="n", request_id="r").dataset_id


def test_unknown_dataset_is_not_found(datasets: Datasets, tenant: str) -> None:
    with pytest.raises(NotFound, match="ds-none") as caught:
        datasets.get(tenant, "ds-none")
    assert caught.value.reason == "DATASET_NOT_FOUND"


def test_samples_are_listed_by_name_with_their_images(
    datasets: Datasets, tenant: str, dataset_id: str, add_sample: AddSample
) -> None:
    added = [add_sample(name, "c 1", "c 2") for name in ("b", "a/../ä 🍎", "a")]
    found = datasets.samples(tenant, dataset_id)
    assert found == sorted(added, key=lambda record: record.sample_name)
    assert datasets.sample_count(tenant, dataset_id) == 3
    assert datasets.image(tenant, dataset_id, added[0]) == noise_png(ord("b"))


def test_sample_of_a_known_name_replaces_it(
    datasets: Datasets, tenant: str, dataset_id: str, add_sample: AddSample
) -> None:
    add_sample("a", "old", seed=1)
    new = add_sample("a", "new", seed=2)
    assert datasets.samples(tenant, dataset_id) == [new]


def test_new_sample_makes_a_ready_dataset_open_again(
    datasets: Datasets, tenant: str, dataset_id: str, add_sample: AddSample
) -> None:
    publish(datasets, tenant, dataset_id)
    datasets.end_encoding(tenant, dataset_id, EncodingOutcome())
    assert datasets.pointer(tenant, dataset_id)
    add_sample("a")
    assert datasets.pointer(tenant, dataset_id) is None
    assert datasets.outcome(tenant, dataset_id) is None


def test_damaged_image_is_never_encoded(
    datasets: Datasets, tenant: str, dataset_id: str, add_sample: AddSample
) -> None:
    record = add_sample("a")
    damage(datasets.store, f"{tenant}/datasets/{dataset_id}/originals/{record.content_digest}")
    with pytest.raises(ObjectDamaged):
        datasets.image(tenant, dataset_id, record)


def test_deleted_dataset_is_gone_with_everything(
    datasets: Datasets, tenant: str, dataset_id: str, add_sample: AddSample
) -> None:
    add_sample("a")
    publish(datasets, tenant, dataset_id)
    datasets.delete(tenant, dataset_id)
    with pytest.raises(NotFound):
        datasets.get(tenant, dataset_id)
    assert list(datasets.store.keys(f"{tenant}/datasets/")) == []


def test_wanted_encoding_is_remembered_until_it_has_ended(datasets: Datasets, tenant: str, dataset_id: str) -> None:
    assert datasets.wanted_encoding(tenant, dataset_id) is None
    datasets.begin_encoding(tenant, dataset_id, OPTIONS)
    assert datasets.wanted_encoding(tenant, dataset_id) == OPTIONS
    assert (tenant, dataset_id, OPTIONS) in list(datasets.all_wanted_encodings())
    datasets.end_encoding(tenant, dataset_id, EncodingOutcome())
    assert datasets.wanted_encoding(tenant, dataset_id) is None


def test_failed_encoding_takes_the_old_result_away(datasets: Datasets, tenant: str, dataset_id: str) -> None:
    publish(datasets, tenant, dataset_id)
    datasets.end_encoding(tenant, dataset_id, EncodingOutcome(failure="a bad sample"))
    assert datasets.pointer(tenant, dataset_id) is None
    assert datasets.outcome(tenant, dataset_id) == EncodingOutcome(failure="a bad sample")
