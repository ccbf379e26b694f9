"""Collection: what nothing needs goes after the grace period, what anything needs never does."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from services.common.cache import hold_key, manifest_key, read_manifest
from services.common.errors import Unavailable
from services.common.object_store import ObjectDamaged, ObjectStore
from services.common.sweep import ABANDONED, SweepMarker, marker_key, wait_for_sweep
from services.encoder.collection import Collector, CollectorThread
from services.encoder.datasets import Datasets
from services.encoder.encoding import DatasetEncoder
from tests.services.encoder.conftest import OPTIONS, AddSample, Desk, noise_png

AT_ONCE, LATER = timedelta(seconds=-2), timedelta(hours=1)  # listings tell whole seconds


def collector(datasets: Datasets, grace: timedelta = AT_ONCE) -> Collector:
    """A collector that loses no time."""
    return Collector(datasets, grace=grace, settle_s=0.0)


def sweep_twice(datasets: Datasets, tenant: str) -> int:
    """Objects removed by two sweeps: the first may only note which manifests are out of use."""
    return sum(collector(datasets).sweep(tenant).objects for _ in range(2))


def kinds(store: ObjectStore, tenant: str) -> set[str]:
    """What there is of a tenant: the second part of its keys, and the kind of cached objects."""
    parts = [key.split("/") for key in store.keys(f"{tenant}/")]
    return {f"{part[1]}/{part[3]}" if part[1] == "cache" else part[1] for part in parts}


def sound(desk: Desk) -> bool:
    """Whether everything that the dataset's manifest lists is there."""
    return all(desk.tensors(cached) for cached in desk.manifest.objects())


def test_what_a_dataset_needs_is_never_collected(desk: Desk, add_sample: AddSample, datasets: Datasets) -> None:
    add_sample("a")
    add_sample("b")
    desk.encode()
    sweep_twice(datasets, desk.tenant)
    assert sound(desk)
    desk.encode()
    assert (desk.progress[-1].cached, desk.progress[-1].problems) == (2, ())


def test_what_a_deleted_dataset_needed_is_collected(desk: Desk, add_sample: AddSample, datasets: Datasets) -> None:
    add_sample("a")
    desk.encode()
    datasets.delete(desk.tenant, desk.dataset_id)
    assert sweep_twice(datasets, desk.tenant) > 3
    assert kinds(datasets.store, desk.tenant) == set()


def test_nothing_goes_before_the_grace_period(desk: Desk, add_sample: AddSample, datasets: Datasets) -> None:
    add_sample("a")
    desk.encode()
    datasets.delete(desk.tenant, desk.dataset_id)
    before = set(datasets.store.keys(f"{desk.tenant}/"))
    for _ in range(3):
        assert collector(datasets, LATER).sweep(desk.tenant).objects == 0
    assert before <= set(datasets.store.keys(f"{desk.tenant}/"))


def test_grace_period_of_a_manifest_begins_when_it_goes_out_of_use(
    desk: Desk, add_sample: AddSample, datasets: Datasets
) -> None:
    add_sample("a")
    desk.encode()
    manifest, digest = desk.manifest, datasets.pointer(desk.tenant, desk.dataset_id)
    assert digest
    written_s = time.monotonic()
    time.sleep(4)
    datasets.delete(desk.tenant, desk.dataset_id)
    grace_s = time.monotonic() - written_s - 1  # a second is as exact as the store dates
    collector(datasets, timedelta(seconds=grace_s)).sweep(desk.tenant)  # old enough, but out of use since now only
    assert read_manifest(datasets.store, desk.tenant, digest.manifest_digest) == manifest


def test_what_a_job_holds_outlives_its_dataset(desk: Desk, add_sample: AddSample, datasets: Datasets) -> None:
    add_sample("a")
    desk.encode()
    manifest, pointer = desk.manifest, datasets.pointer(desk.tenant, desk.dataset_id)
    assert pointer
    hold = hold_key(desk.tenant, pointer.manifest_digest, "job-1")
    datasets.store.put(hold, b"")
    datasets.delete(desk.tenant, desk.dataset_id)
    sweep_twice(datasets, desk.tenant)
    assert all(desk.tensors(cached) for cached in manifest.objects())
    datasets.store.delete(hold)
    sweep_twice(datasets, desk.tenant)
    assert kinds(datasets.store, desk.tenant) == set()


def test_job_that_holds_an_encoding_keeps_what_it_gave(desk: Desk, add_sample: AddSample, datasets: Datasets) -> None:
    add_sample("a")
    wanted = datasets.begin_encoding(desk.tenant, desk.dataset_id, OPTIONS)
    datasets.store.put(hold_key(desk.tenant, wanted.encoding_id, "job-1"), b"")
    desk.encode()
    manifest = desk.manifest
    datasets.delete(desk.tenant, desk.dataset_id)
    sweep_twice(datasets, desk.tenant)
    assert all(desk.tensors(cached) for cached in manifest.objects())
    assert "encodings" in kinds(datasets.store, desk.tenant)


def test_manifest_that_is_used_again_is_no_longer_noted(desk: Desk, add_sample: AddSample, datasets: Datasets) -> None:
    add_sample("a", "an apple")
    desk.encode()
    add_sample("a", "a pear")
    desk.encode()
    collector(datasets, LATER).sweep(desk.tenant)  # the apple's manifest is out of use
    add_sample("a", "an apple")
    desk.encode()
    sweep_twice(datasets, desk.tenant)
    assert sound(desk)


def test_note_of_a_manifest_goes_when_it_is_used_again(desk: Desk, add_sample: AddSample, datasets: Datasets) -> None:
    """Else it would go without any grace period the next time that it is out of use."""
    add_sample("a", "an apple")
    desk.encode()
    pointer = datasets.pointer(desk.tenant, desk.dataset_id)
    assert pointer
    note = f"{desk.tenant}/unreferenced/{pointer.manifest_digest}"
    add_sample("a", "a pear")
    desk.encode()
    collector(datasets, LATER).sweep(desk.tenant)
    assert datasets.store.exists(note)
    add_sample("a", "an apple")
    desk.encode()
    collector(datasets, LATER).sweep(desk.tenant)
    assert not datasets.store.exists(note)


def test_nothing_is_collected_while_anything_is_being_encoded(
    desk: Desk, add_sample: AddSample, datasets: Datasets, encoder: DatasetEncoder
) -> None:
    add_sample("a")
    desk.encode()
    datasets.delete(desk.tenant, desk.dataset_id)
    other = datasets.create(desk.tenant, display_name="", request_id="").dataset_id
    datasets.begin_encoding(desk.tenant, other, OPTIONS)
    swept = collector(datasets).sweep(desk.tenant)
    assert (swept.busy, swept.objects) == (True, 0)
    wait_for_sweep(datasets.store, desk.tenant, patience_s=0)  # it has taken its marker away


def test_replaced_image_is_collected_and_its_successor_is_not(
    desk: Desk, add_sample: AddSample, datasets: Datasets
) -> None:
    add_sample("a", seed=1)
    new = add_sample("a", seed=2)
    collector(datasets).sweep(desk.tenant)
    originals = list(datasets.store.keys(f"{desk.tenant}/datasets/{desk.dataset_id}/originals/"))
    assert [key.rpartition("/")[2] for key in originals] == [new.content_digest]


def test_index_goes_with_its_tensors_so_that_nothing_seems_damaged(
    desk: Desk, add_sample: AddSample, datasets: Datasets
) -> None:
    record = add_sample("a", seed=1)
    desk.encode()
    datasets.delete(desk.tenant, desk.dataset_id)
    sweep_twice(datasets, desk.tenant)
    again = Desk(
        desk.encoder, datasets, desk.tenant, datasets.create(desk.tenant, display_name="", request_id="").dataset_id
    )
    datasets.put_sample(again.tenant, again.dataset_id, record, noise_png(1))
    assert again.encode().problems == ()


def test_caption_that_is_asked_for_again_is_young_again(
    encoder: DatasetEncoder, datasets: Datasets, tenant: str
) -> None:
    (cached,) = encoder.embed_captions(tenant, ["an apple"])
    tensors = encoder._tensors(tenant)
    recipe = {"caption": "an apple", "t5_tokens": encoder._models.models.t5_tokens}
    (before,) = datasets.store.listed(cached.embedding.key)
    time.sleep(2.1)
    assert tensors.find("captions", recipe, refresh=LATER) == cached.embedding
    assert next(datasets.store.listed(cached.embedding.key)).changed == before.changed
    assert tensors.find("captions", recipe, refresh=timedelta(0)) == cached.embedding
    assert next(datasets.store.listed(cached.embedding.key)).changed > before.changed


def test_who_begins_to_use_objects_waits_for_a_sweep(store: ObjectStore, tenant: str) -> None:
    marker = SweepMarker(token="t", beat=datetime.now(UTC))
    store.put(marker_key(tenant), marker.model_dump_json().encode())
    with pytest.raises(Unavailable, match="collected") as caught:
        wait_for_sweep(store, tenant, patience_s=0.1)
    assert caught.value.reason == "SWEEP_UNDER_WAY"
    threading.Timer(0.2, store.delete, [marker_key(tenant)]).start()
    wait_for_sweep(store, tenant, patience_s=10)


@pytest.mark.parametrize("work", ["encoding", "prompts"])
def test_encoder_relies_on_nothing_while_a_sweep_is_under_way(
    desk: Desk, add_sample: AddSample, datasets: Datasets, work: str
) -> None:
    add_sample("a")
    marker = SweepMarker(token="t", beat=datetime.now(UTC))
    datasets.store.put(marker_key(desk.tenant), marker.model_dump_json().encode())
    began_s = time.monotonic()
    threading.Timer(0.5, datasets.store.delete, [marker_key(desk.tenant)]).start()
    if work == "encoding":
        desk.encode()
    else:
        desk.encoder.embed_captions(desk.tenant, ["an apple"])
    assert time.monotonic() - began_s >= 0.5


def test_sweep_that_was_killed_holds_nobody_up_for_long(store: ObjectStore, tenant: str) -> None:
    marker = SweepMarker(token="t", beat=datetime.now(UTC) - ABANDONED - timedelta(seconds=1))
    store.put(marker_key(tenant), marker.model_dump_json().encode())
    wait_for_sweep(store, tenant, patience_s=0)


def test_second_sweep_leaves_the_first_alone(desk: Desk, datasets: Datasets) -> None:
    marker = SweepMarker(token="t", beat=datetime.now(UTC))
    datasets.store.put(marker_key(desk.tenant), marker.model_dump_json().encode())
    assert collector(datasets).sweep(desk.tenant).busy
    assert datasets.store.exists(marker_key(desk.tenant))


def test_sample_that_comes_during_a_sweep_keeps_its_image(
    desk: Desk, add_sample: AddSample, datasets: Datasets
) -> None:
    marker = SweepMarker(token="t", beat=datetime.now(UTC))
    store, key = datasets.store, marker_key(desk.tenant)
    store.put(key, marker.model_dump_json().encode())
    originals = f"{desk.tenant}/datasets/{desk.dataset_id}/originals/"

    def end_sweep() -> None:
        store.delete_prefix(originals)  # it had seen the image before its sample was there
        store.delete(key)

    threading.Timer(0.5, end_sweep).start()
    record = add_sample("a")
    assert datasets.image(desk.tenant, desk.dataset_id, record)


def test_encoding_in_the_middle_of_sweeps_is_always_whole(
    desk: Desk, add_sample: AddSample, datasets: Datasets
) -> None:
    """Sweeps without a grace period run against encodings that drop and reuse the same tensors again and again."""
    records = [add_sample(f"{number}", seed=number) for number in range(3)]
    stop = threading.Event()

    def sweep() -> None:
        while not stop.is_set():
            Collector(datasets, grace=AT_ONCE, settle_s=0.05).sweep(desk.tenant)

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    try:
        for number in range(12):
            for record in records:
                caption = f"{record.sample_name} {number % 2}"
                add_sample(record.sample_name, caption, seed=int(record.sample_name))
            desk.encode()
            assert sound(desk)
    finally:
        stop.set()
        sweeper.join()


def test_thread_collects_now_and_then_though_another_tenants_manifest_is_damaged(
    desk: Desk, add_sample: AddSample, datasets: Datasets
) -> None:
    first = f"a{desk.tenant}"  # whose turn is before that of the tests' tenants
    datasets.store.put(hold_key(first, "0" * 64, "job-1"), b"")
    datasets.store.put(manifest_key(first, "0" * 64), b"{}")
    with pytest.raises(ObjectDamaged):
        collector(datasets).sweep(first)
    add_sample("a")
    desk.encode()
    datasets.delete(desk.tenant, desk.dataset_id)
    thread = CollectorThread(collector(datasets), datasets.store, interval_s=0.1)
    thread.start()
    deadline_s = time.monotonic() + 60
    while kinds(datasets.store, desk.tenant):
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    thread.close()
