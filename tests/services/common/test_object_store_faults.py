"""The object store over a faulty network: what it says is written is there, what it hands out is what was written."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from minio import Minio
from minio.datatypes import Object

from services.common import object_store, s3_client
from services.common.errors import ServiceError, Unavailable
from services.common.object_store import PART_BYTES, ObjectDamaged, ObjectMissing, ObjectStore
from services.stack import Stack
from tests.faults.proxy import FaultProxy, Faults

DATA = bytes(range(256)) * 1024
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def proxy(store_stack: Stack) -> Iterator[FaultProxy]:
    """The network between the store's client and SeaweedFS, good until told otherwise."""
    with FaultProxy(upstream=store_stack.store_settings.endpoint, seed=5) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def _haste(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Little time between tries, and for a server that hangs."""
    monkeypatch.setattr(object_store, "RETRY_S", 0.02)
    if "hang" in request.node.name or "storm" in request.node.name:
        monkeypatch.setattr(s3_client, "READ_S", 0.3)


@pytest.fixture
def faulty(proxy: FaultProxy, store_stack: Stack) -> ObjectStore:
    """The store through the proxy, without patience."""
    return ObjectStore(store_stack.store_settings.model_copy(update={"endpoint": proxy.endpoint}))


def faults(shares: dict[str, float], *, times: int = 0, only: str = "") -> Faults:
    """Faults by name."""
    named: dict[str, Any] = dict(shares)
    return Faults(**named, times=times, only=only)


LOUD = [
    Faults(refuse=1.0),
    Faults(drop_answer=1.0),
    Faults(hang=1.0),
]


@pytest.mark.parametrize("broken", [*LOUD, Faults(cut_up=1.0)], ids=["refuse", "drop_answer", "hang", "cut_up"])
def test_put_over_a_broken_network_is_unavailable_and_leaves_nothing_torn(
    faulty: ObjectStore, store: ObjectStore, proxy: FaultProxy, tenant: str, broken: Faults
) -> None:
    proxy.faults = broken
    with pytest.raises(Unavailable, match="does not serve"):
        faulty.put(f"{tenant}/a", DATA)
    assert not store.exists(f"{tenant}/a") or store.get(f"{tenant}/a") == DATA


@pytest.mark.parametrize("broken", [*LOUD, Faults(cut_down=1.0)], ids=["refuse", "drop_answer", "hang", "cut_down"])
def test_get_and_listing_over_a_broken_network_are_unavailable_and_never_short(
    faulty: ObjectStore, store: ObjectStore, proxy: FaultProxy, tenant: str, broken: Faults
) -> None:
    store.put(f"{tenant}/a", DATA)
    proxy.faults = broken
    for read in (
        lambda: faulty.get(f"{tenant}/a"),
        lambda: list(faulty.keys(tenant)),
        lambda: list(faulty.folders("")),
    ):
        with pytest.raises(Unavailable, match="does not serve"):
            read()


@pytest.mark.parametrize("broken", LOUD, ids=["refuse", "drop_answer", "hang"])
def test_callers_do_not_learn_where_the_store_is(faulty: ObjectStore, proxy: FaultProxy, broken: Faults) -> None:
    proxy.faults = broken
    with pytest.raises(Unavailable) as caught:
        faulty.exists("a")
    assert faulty._endpoint not in caught.value.line
    assert faulty._endpoint in caught.value.log_line


@pytest.mark.parametrize("broken", LOUD, ids=["refuse", "drop_answer", "hang"])
def test_exists_and_deletes_over_a_broken_network_are_unavailable(
    faulty: ObjectStore, store: ObjectStore, proxy: FaultProxy, tenant: str, broken: Faults
) -> None:
    store.put(f"{tenant}/a", b"x")
    proxy.faults = broken
    for call in (faulty.exists, faulty.delete, faulty.delete_prefix):
        with pytest.raises(Unavailable, match="does not serve"):
            call(f"{tenant}/a")


def test_bit_flipped_on_the_way_up_is_no_success(
    faulty: ObjectStore, store: ObjectStore, proxy: FaultProxy, tenant: str
) -> None:
    proxy.faults = Faults(flip_up=1.0)
    with pytest.raises(Unavailable) as caught:
        faulty.put(f"{tenant}/a", DATA)
    assert caught.value.reason == "STORE_DAMAGES"
    assert "TLS" in caught.value.remedy
    with pytest.raises(ObjectDamaged):
        store.get_verified(f"{tenant}/a")


def test_bit_flipped_in_a_part_on_the_way_up_is_no_success(faulty: ObjectStore, proxy: FaultProxy, tenant: str) -> None:
    proxy.faults = Faults(flip_up=1.0, only=r"^PUT .*partNumber=2&")
    with pytest.raises(Unavailable, match="wrote something else"):
        faulty.put(f"{tenant}/a", bytes(PART_BYTES) + b"tail")


@pytest.mark.parametrize("fault", ["refuse", "hang", "cut_up", "flip_up", "drop_answer"])
def test_patient_put_outlives_a_fault(
    faulty: ObjectStore, store: ObjectStore, proxy: FaultProxy, tenant: str, fault: str
) -> None:
    proxy.faults = faults({fault: 1.0}, times=4, only="^PUT")  # the client's own three tries fail
    stored = faulty.with_patience(30.0).put(f"{tenant}/a", DATA)
    assert proxy.done[fault] == 4
    assert store.get_verified(stored.key) == DATA


@pytest.mark.parametrize("fault", ["refuse", "hang", "cut_down", "drop_answer"])
def test_patient_reading_outlives_a_fault(
    faulty: ObjectStore, store: ObjectStore, proxy: FaultProxy, tenant: str, fault: str
) -> None:
    store.put(f"{tenant}/f/a", DATA)
    patient, struck = faulty.with_patience(30.0), faults({fault: 1.0}, times=4)
    proxy.faults = struck
    assert patient.get(f"{tenant}/f/a") == DATA
    proxy.faults = struck
    assert list(patient.keys(f"{tenant}/")) == [f"{tenant}/f/a"]
    proxy.faults = struck
    assert list(patient.folders(f"{tenant}/")) == ["f"]
    assert proxy.done[fault] == 12


@pytest.mark.parametrize("fault", ["refuse", "hang", "cut_up", "cut_down", "flip_up", "flip_down", "drop_answer"])
def test_patient_delete_outlives_a_fault_and_leaves_nothing(
    faulty: ObjectStore, store: ObjectStore, proxy: FaultProxy, tenant: str, fault: str
) -> None:
    for name in ("a/1", "a/2", "b"):
        store.put(f"{tenant}/{name}", b"x")
    proxy.faults = faults({fault: 1.0}, times=2, only="^POST")
    faulty.with_patience(30.0).delete_prefix(f"{tenant}/a/")
    assert proxy.requests > 2
    assert list(store.keys(f"{tenant}/")) == [f"{tenant}/b"]


def test_object_damaged_only_on_its_way_is_read_again(faulty: ObjectStore, proxy: FaultProxy, tenant: str) -> None:
    faulty.put(f"{tenant}/a", DATA)
    proxy.faults = Faults(flip_down=1.0, times=1)
    assert faulty.get_verified(f"{tenant}/a") == DATA
    proxy.faults = Faults(flip_down=1.0, times=1)
    assert faulty.get(f"{tenant}/a", digest=DIGEST) == DATA
    assert proxy.done == {"flip_down": 2}


def test_object_damaged_on_every_way_is_never_handed_out(faulty: ObjectStore, proxy: FaultProxy, tenant: str) -> None:
    faulty.put(f"{tenant}/a", DATA)
    proxy.faults = Faults(flip_down=1.0)
    with pytest.raises(ObjectDamaged):
        faulty.get_verified(f"{tenant}/a")


def two_by_two(client: Minio, bucket: str, prefix: str, *, recursive: bool, start_after: str) -> Iterator[Object]:
    """A listing in pages of two."""
    delimiter = None if recursive else "/"
    return client._list_objects(bucket, prefix=prefix, delimiter=delimiter, start_after=start_after, max_keys=2)


def test_listing_goes_on_after_the_last_key_that_came(
    faulty: ObjectStore, store: ObjectStore, proxy: FaultProxy, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{tenant}/{name}" for name in ("a", "b/1", "b/2", "c d", "e")]
    for name in names:
        store.put(name, b"x")
    monkeypatch.setattr(faulty._client, "list_objects", partial(two_by_two, faulty._client))
    listing = faulty.with_patience(30.0).keys(f"{tenant}/")
    first = [next(listing), next(listing), next(listing)]
    proxy.faults = Faults(cut_down=1.0, times=4)
    assert first + list(listing) == names
    assert proxy.done["cut_down"] == 4


@pytest.mark.parametrize("after", range(5))
def test_any_key_can_be_the_one_to_go_on_after(store: ObjectStore, tenant: str, after: int) -> None:
    for name in ("a/b", "a-b", "a", "a b", "aé"):
        store.put(f"{tenant}/{name}x", b"x")
    keys = list(store.keys(f"{tenant}/"))
    assert list(store.keys(f"{tenant}/", start_after=keys[after])) == keys[after + 1 :]


def test_listing_that_cannot_be_read_is_unavailable(
    faulty: ObjectStore, store: ObjectStore, proxy: FaultProxy, tenant: str
) -> None:
    store.put(f"{tenant}/a", b"x")
    outcomes: set[object] = set()
    proxy.faults = Faults(flip_down=1.0)
    for _ in range(150):
        try:
            outcomes.add(all(key.startswith(f"{tenant}/") for key in faulty.keys(f"{tenant}/")))
            list(faulty.folders(""))
        except ServiceError as error:
            outcomes.add(type(error))
    assert outcomes == {True, Unavailable}


def test_error_page_that_cannot_be_read_is_unavailable_or_says_what_is_missing(
    faulty: ObjectStore, proxy: FaultProxy, tenant: str
) -> None:
    proxy.faults = Faults(flip_down=1.0)
    for _ in range(100):
        with pytest.raises((ObjectMissing, Unavailable)):
            faulty.get(f"{tenant}/none")


class Cancelled(Exception):
    """What a check for cancelling may raise."""


@pytest.mark.parametrize("fault", ["refuse", "hang"])
def test_wait_ends_with_what_the_caller_raises(faulty: ObjectStore, proxy: FaultProxy, tenant: str, fault: str) -> None:
    asked: list[float] = []

    def check() -> None:
        asked.append(time.monotonic())
        if len(asked) == 3:
            raise Cancelled

    proxy.faults = faults({fault: 1.0})
    with pytest.raises(Cancelled):
        faulty.with_patience(600.0, while_waiting=check).put(f"{tenant}/a", b"x")


def test_patience_of_a_copy_is_its_own(faulty: ObjectStore, proxy: FaultProxy, tenant: str) -> None:
    patient = faulty.with_patience(30.0)
    proxy.faults = Faults(refuse=1.0, times=4)
    with pytest.raises(Unavailable):
        faulty.put(f"{tenant}/a", b"x")
    assert patient.put(f"{tenant}/a", b"x").size_bytes == 1


def test_time_limit_is_not_for_the_whole_of_a_body(
    store_stack: Stack, proxy: FaultProxy, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_client, "CONNECT_S", 0.3)
    hasty = ObjectStore(store_stack.store_settings.model_copy(update={"endpoint": proxy.endpoint}))
    proxy.faults = Faults(bytes_per_s=1.2e7)
    hasty.put(f"{tenant}/a", bytes(PART_BYTES))
    assert proxy.requests == 1


STORM = {"refuse": 0.05, "hang": 0.01, "cut_up": 0.05, "cut_down": 0.05, "drop_answer": 0.05}
FLIPS = {"flip_up": 0.1, "flip_down": 0.1}


def test_storm_loses_and_changes_nothing_that_was_acknowledged(
    faulty: ObjectStore, store: ObjectStore, proxy: FaultProxy, tenant: str
) -> None:
    dice, patient = random.Random(11), faulty.with_patience(60.0)  # noqa: S311
    there: dict[str, bytes] = {}
    for _ in range(200):
        key = f"{tenant}/{dice.randrange(12)}"
        what = dice.choice(["put", "put", "get", "list", "delete"])
        proxy.faults = faults(STORM) if what == "list" else faults(STORM | FLIPS)
        if what == "put":
            data = dice.randbytes(dice.choice([1, 1000, 200_000]))
            assert patient.put(key, data).size_bytes == len(data)
            there[key] = data
        elif what == "delete":
            patient.delete(key)
            there.pop(key, None)
        elif what == "list":
            assert set(patient.keys(f"{tenant}/")) == set(there)
        else:
            try:
                assert patient.get_verified(key) == there[key]
            except ObjectMissing:
                assert key not in there
            except ObjectDamaged:  # struck twice
                continue
    assert len(proxy.done) == len(STORM) + len(FLIPS)
    assert {key: store.get_verified(key) for key in store.keys(f"{tenant}/")} == there


def test_request_that_hangs_is_left_to_patience(faulty: ObjectStore, proxy: FaultProxy, tenant: str) -> None:
    proxy.faults = Faults(hang=1.0)
    with pytest.raises(Unavailable, match="ReadTimeoutError"):
        faulty.get(f"{tenant}/a")
    assert proxy.done == {"hang": 1}
