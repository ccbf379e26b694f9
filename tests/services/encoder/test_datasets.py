"""Datasets in the store: what is acknowledged is there, for its tenant only, and gone once deleted."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from services.common.cache import ManifestPointer
from services.common.errors import AlreadyExists, NotFound, NotReady
from services.common.object_store import ObjectDamaged, ObjectStore
from services.encoder.datasets import Datasets, sample_key
from services.encoder.records import EncodingOutcome, WantedEncoding
from tests.services.damage import damage
from tests.services.encoder.conftest import OPTIONS, AddSample, noise_png


def begin(datasets: Datasets, tenant: str, dataset_id: str) -> tuple[WantedEncoding, ManifestPointer]:
    """Begin an encoding; return it with the result that it would have."""
    pointer = ManifestPointer(
        manifest_digest="0",
        encoder_fingerprint="f",
        revision=datasets.revision(tenant, dataset_id),
        sample_count=1,
        cached_count=0,
    )
    return datasets.begin_encoding(tenant, dataset_id, OPTIONS), pointer


def end(datasets: Datasets, tenant: str, dataset_id: str, *, failure: str = "") -> None:
    """Begin an encoding and end it, READY unless there is a failure."""
    wanted, pointer = begin(datasets, tenant, dataset_id)
    outcome = EncodingOutcome(failure=failure, options=OPTIONS, revision=pointer.revision)
    datasets.end_encoding(tenant, dataset_id, wanted, outcome, None if failure else pointer)


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


def test_samples_are_listed_in_the_order_of_their_keys(
    datasets: Datasets, tenant: str, dataset_id: str, add_sample: AddSample
) -> None:
    added = [add_sample(name, "c 1", "c 2") for name in ("b", "a/../ä 🍎", "a")]
    expected = sorted(added, key=lambda record: sample_key(record.sample_name))
    assert list(datasets.samples(tenant, dataset_id)) == expected
    assert list(datasets.samples(tenant, dataset_id, after=expected[0].sample_name)) == expected[1:]
    assert list(datasets.sample_keys(tenant, dataset_id)) == [sample_key(record.sample_name) for record in expected]
    assert datasets.sample_count(tenant, dataset_id) == 3
    assert datasets.image(tenant, dataset_id, added[0]) == noise_png(ord("b"))


def test_sample_of_a_known_name_replaces_it(
    datasets: Datasets, tenant: str, dataset_id: str, add_sample: AddSample
) -> None:
    add_sample("a", "old", seed=1)
    new = add_sample("a", "new", seed=2)
    assert list(datasets.samples(tenant, dataset_id)) == [new]


def test_new_sample_makes_a_ready_dataset_open_again(
    datasets: Datasets, tenant: str, dataset_id: str, add_sample: AddSample
) -> None:
    end(datasets, tenant, dataset_id)
    assert datasets.pointer(tenant, dataset_id)
    add_sample("a")
    assert datasets.pointer(tenant, dataset_id) is None
    assert datasets.outcome(tenant, dataset_id) is None


def test_upload_cut_short_between_any_two_writes_leaves_no_stale_result(
    datasets: Datasets, tenant: str, dataset_id: str, add_sample: AddSample, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, left = ObjectStore.put, 1000

    def mortal_put(store: ObjectStore, *arguments: Any, **options: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt  # as if killed
        return put(store, *arguments, **options)

    monkeypatch.setattr(ObjectStore, "put", mortal_put)
    for writes in range(1, 4):
        left = 1000
        add_sample("a", "old")
        end(datasets, tenant, dataset_id)
        left = writes
        with pytest.raises(KeyboardInterrupt):
            add_sample("a", "new")
        (record,) = datasets.samples(tenant, dataset_id)
        assert record.captions == ("old",) or datasets.pointer(tenant, dataset_id) is None


def test_one_request_id_with_two_names_at_once_makes_one_dataset(datasets: Datasets, tenant: str) -> None:
    def create(name: str) -> str:
        try:
            return datasets.create(tenant, display_name=name, request_id="r").display_name
        except AlreadyExists:
            return "refused"

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(create, ["a", "b"] * 8))
    assert len({answer for answer in answers if answer != "refused"}) == 1
    assert answers.count("refused") == 8


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
    end(datasets, tenant, dataset_id)
    datasets.delete(tenant, dataset_id)
    with pytest.raises(NotFound):
        datasets.get(tenant, dataset_id)
    assert list(datasets.store.keys(f"{tenant}/datasets/")) == []


def test_wanted_encoding_is_remembered_until_it_has_ended(datasets: Datasets, tenant: str, dataset_id: str) -> None:
    assert datasets.wanted_encoding(tenant, dataset_id) is None
    wanted, pointer = begin(datasets, tenant, dataset_id)
    assert datasets.wanted_encoding(tenant, dataset_id) == wanted
    assert (tenant, dataset_id, wanted) in list(datasets.all_wanted_encodings())
    datasets.end_encoding(tenant, dataset_id, wanted, EncodingOutcome(), pointer)
    assert datasets.wanted_encoding(tenant, dataset_id) is None


def test_encoding_under_way_is_joined_with_the_same_options_only(
    datasets: Datasets, tenant: str, dataset_id: str
) -> None:
    wanted = datasets.begin_encoding(tenant, dataset_id, OPTIONS)
    assert datasets.begin_encoding(tenant, dataset_id, OPTIONS) == wanted
    with pytest.raises(NotReady, match="other options") as caught:
        datasets.begin_encoding(tenant, dataset_id, OPTIONS.model_copy(update={"flip": True}))
    assert caught.value.reason == "DATASET_ENCODING"


def test_failed_encoding_takes_the_old_result_away(datasets: Datasets, tenant: str, dataset_id: str) -> None:
    end(datasets, tenant, dataset_id)
    end(datasets, tenant, dataset_id, failure="a bad sample")
    assert datasets.pointer(tenant, dataset_id) is None
    outcome = datasets.outcome(tenant, dataset_id)
    assert outcome
    assert outcome.failure == "a bad sample"


def test_encoder_that_comes_too_late_changes_nothing(datasets: Datasets, tenant: str, dataset_id: str) -> None:
    wanted, pointer = begin(datasets, tenant, dataset_id)
    datasets.end_encoding(tenant, dataset_id, wanted, EncodingOutcome(), pointer)
    late = pointer.model_copy(update={"manifest_digest": "late"})
    datasets.end_encoding(tenant, dataset_id, wanted, EncodingOutcome(failure="late"), late)
    assert datasets.pointer(tenant, dataset_id) == pointer
    newer, _ = begin(datasets, tenant, dataset_id)
    assert datasets.end_encoding(tenant, dataset_id, wanted, EncodingOutcome(failure="late"), late) == newer
    assert datasets.wanted_encoding(tenant, dataset_id) == newer


def test_result_for_samples_that_have_changed_meanwhile_does_not_count(
    datasets: Datasets, tenant: str, dataset_id: str, add_sample: AddSample
) -> None:
    add_sample("a")
    other = Datasets(datasets.store)  # of another encoder, which ended the encoding and took a sample
    wanted, pointer = begin(datasets, tenant, dataset_id)
    other.store.delete(f"{tenant}/datasets/{dataset_id}/encoding.json")
    add_sample("b")
    other.store.put(f"{tenant}/datasets/{dataset_id}/encoding.json", wanted.model_dump_json().encode())
    datasets.end_encoding(tenant, dataset_id, wanted, EncodingOutcome(revision=pointer.revision), pointer)
    assert datasets.pointer(tenant, dataset_id) is None
    assert datasets.outcome(tenant, dataset_id) is None
