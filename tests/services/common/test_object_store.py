"""The object store on two real S3 servers: what was written is read back or an error says why not."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest
import urllib3
from pydantic import SecretStr

from services.common.errors import ServiceError, Unavailable
from services.common.object_store import PART_BYTES, ObjectDamaged, ObjectMissing, ObjectStore
from services.common.s3_client import Parts
from services.common.settings import StoreSettings
from services.ports import free_ports
from tests.services.damage import damage


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 4096], ids=["empty", "byte", "megabyte"])
def test_what_is_put_is_got(any_store: ObjectStore, tenant: str, data: bytes) -> None:
    stored = any_store.put(f"{tenant}/a", data)
    assert any_store.get(stored.key, digest=stored.digest) == data
    assert stored.size_bytes == len(data)
    assert any_store.get_verified(stored.key) == data
    (listed,) = any_store.listed(f"{tenant}/")
    assert (listed.key, listed.size_bytes) == (stored.key, len(data))
    assert abs(datetime.now(UTC) - listed.changed) < timedelta(minutes=1)


@pytest.mark.parametrize("more", [-1, 0, 1, PART_BYTES + 1], ids=["below", "one", "above", "three"])
def test_etag_tells_what_was_written_in_parts_too(
    any_store: ObjectStore, tenant: str, more: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(any_store, "_digest_of", None)  # no object is read back
    data = b"ab" * (PART_BYTES // 2 + 1 + PART_BYTES)
    stored = any_store.put(f"{tenant}/a", data[: PART_BYTES + more])
    assert any_store.get_verified(stored.key) == data[: PART_BYTES + more]


def test_object_whose_etag_tells_nothing_is_read_back(
    any_store: ObjectStore, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Parts, "etag", "that of a server that encrypts")
    any_store.put(f"{tenant}/a", b"x")
    with pytest.raises(Unavailable, match="wrote something else"):
        any_store.put(f"{tenant}/a", b"x", digest="of something else")


def test_put_replaces(any_store: ObjectStore, tenant: str) -> None:
    any_store.put(f"{tenant}/a", b"old")
    any_store.put(f"{tenant}/a", b"new")
    assert any_store.get(f"{tenant}/a") == b"new"


@pytest.mark.parametrize("name", ["with space", "plus+percent%41", "ümläut/日本", "a=b&c?d"])
def test_any_name_can_be_a_key(any_store: ObjectStore, tenant: str, name: str) -> None:
    any_store.put(f"{tenant}/{name}", b"x")
    assert any_store.get(f"{tenant}/{name}") == b"x"
    assert list(any_store.keys(f"{tenant}/")) == [f"{tenant}/{name}"]


def test_missing_object_is_named_with_a_remedy(any_store: ObjectStore, tenant: str) -> None:
    with pytest.raises(ObjectMissing, match=f"{tenant}/none") as caught:
        any_store.get(f"{tenant}/none")
    assert "Encode" in caught.value.remedy
    assert not any_store.exists(f"{tenant}/none")


def test_damaged_object_is_never_handed_out(any_store: ObjectStore, tenant: str) -> None:
    stored = any_store.put(f"{tenant}/a", b"good bytes")
    damage(any_store, stored.key, b"bad bytes!")
    with pytest.raises(ObjectDamaged):
        any_store.get(stored.key, digest=stored.digest)
    with pytest.raises(ObjectDamaged):
        any_store.get_verified(stored.key)


def test_names_that_begin_alike_are_found_by_how_they_begin(any_store: ObjectStore, tenant: str) -> None:
    for name in ("abc.1", "abc.2", "abcd.1", "abd.1", "ab"):
        any_store.put(f"{tenant}/x/{name}", b"x")
    assert list(any_store.keys(f"{tenant}/x/abc.")) == [f"{tenant}/x/abc.1", f"{tenant}/x/abc.2"]
    assert list(any_store.keys(f"{tenant}/y/abc.")) == []


def test_listing_tells_when_an_object_was_last_written(any_store: ObjectStore, tenant: str) -> None:
    any_store.put(f"{tenant}/a", b"x")
    (before,) = any_store.listed(f"{tenant}/a")
    time.sleep(2.1)
    any_store.put(f"{tenant}/a", b"x")
    (after,) = any_store.listed(f"{tenant}/a")
    assert after.changed > before.changed


def test_keys_are_listed_in_order_at_all_levels(any_store: ObjectStore, tenant: str) -> None:
    names = [f"{tenant}/x/{name}" for name in ("b/2", "a", "b/1", "c/d/e")]
    for name in names:
        any_store.put(name, b"x")
    any_store.put(f"{tenant}/y", b"x")
    assert list(any_store.keys(f"{tenant}/x/")) == sorted(names)
    assert list(any_store.keys(f"{tenant}/x/", start_after=f"{tenant}/x/b/1")) == sorted(names)[2:]


def test_folders_are_one_level_only(any_store: ObjectStore, tenant: str) -> None:
    for name in ("ds-2/a", "ds-1/b/c", "file"):
        any_store.put(f"{tenant}/datasets/{name}", b"x")
    assert list(any_store.folders(f"{tenant}/datasets/")) == ["ds-1", "ds-2"]


def test_delete_prefix_takes_everything_under_it_and_nothing_else(any_store: ObjectStore, tenant: str) -> None:
    for name in ("job-1/a", "job-1/b/c", "job-10/a"):
        any_store.put(f"{tenant}/{name}", b"x")
    any_store.delete_prefix(f"{tenant}/job-1/")
    left = [key for key in any_store.keys(f"{tenant}/") if not key.endswith("/")]  # a file server keeps empty folders
    assert left == [f"{tenant}/job-10/a"]


def test_delete_of_nothing_is_no_error(any_store: ObjectStore, tenant: str) -> None:
    any_store.delete(f"{tenant}/none")
    any_store.delete_prefix(f"{tenant}/none/")


def test_uri_and_key_are_inverse(any_store: ObjectStore) -> None:
    assert any_store.key_of(any_store.uri("t/a b")) == "t/a b"
    assert any_store.key_of("s3://another/t/a") is None
    assert any_store.key_of("https://example.com") is None


def test_download_url_gives_the_bytes_to_whoever_has_it(any_store: ObjectStore, tenant: str) -> None:
    any_store.put(f"{tenant}/lora file", b"weights")
    response = urllib3.request("GET", any_store.download_url(f"{tenant}/lora file", timedelta(minutes=1)))
    assert (response.status, response.data) == (200, b"weights")


def test_download_url_expires(any_store: ObjectStore, tenant: str) -> None:
    any_store.put(f"{tenant}/a", b"x")
    url = any_store.download_url(f"{tenant}/a", timedelta(seconds=1))
    time.sleep(2.1)
    assert urllib3.request("GET", url).status == 403


def test_download_url_is_for_one_key_only(any_store: ObjectStore, tenant: str) -> None:
    for name in ("mine", "other"):
        any_store.put(f"{tenant}/{name}", b"x")
    url = any_store.download_url(f"{tenant}/mine", timedelta(minutes=1))
    assert urllib3.request("GET", url.replace("/mine", "/other")).status == 403


def test_upload_url_takes_the_bytes_of_whoever_has_it(any_store: ObjectStore, tenant: str) -> None:
    url = any_store.upload_url(f"{tenant}/lora file", timedelta(minutes=1))
    assert urllib3.request("PUT", url, body=b"weights").status == 200
    assert any_store.get(f"{tenant}/lora file") == b"weights"
    assert urllib3.request("GET", url).status == 403  # for putting only
    assert urllib3.request("PUT", url.replace("/lora", "/other"), body=b"x").status == 403


def test_upload_url_leads_to_where_clients_reach_the_store(store_settings: StoreSettings) -> None:
    public = ObjectStore(store_settings.model_copy(update={"public_endpoint": "store.example:9000"}))
    assert public.upload_url("t/a", timedelta(minutes=1)).startswith("http://store.example:9000/")


def test_wrong_keys_are_refused(store_settings: StoreSettings) -> None:
    wrong = ObjectStore(store_settings.model_copy(update={"secret_key": SecretStr("wrong")}))
    with pytest.raises(Unavailable) as caught:
        wrong.put("t/a", b"x")
    assert store_settings.endpoint in caught.value.log_line
    assert store_settings.endpoint not in caught.value.line  # which callers see
    assert "credentials" in caught.value.remedy


def test_store_that_is_down_is_unavailable_with_a_remedy() -> None:
    endpoint = f"127.0.0.1:{free_ports(1)[0]}"
    down = ObjectStore(StoreSettings(endpoint=endpoint, secret_key=SecretStr("s")))
    with pytest.raises(Unavailable) as caught:
        down.get("t/a")
    assert endpoint in caught.value.log_line
    assert endpoint not in caught.value.line
    assert "FLUXSMITH_STORE_" in caught.value.remedy
    assert caught.value.retry_after_s > 0


def test_bucket_that_is_not_there_is_unavailable(store_settings: StoreSettings) -> None:
    other = ObjectStore(store_settings.model_copy(update={"bucket": "never-made"}))
    with pytest.raises(Unavailable):
        other.get("t/a")


def test_ensure_bucket_makes_it_once_and_for_all(store_settings: StoreSettings) -> None:
    made = ObjectStore(store_settings.model_copy(update={"bucket": "made-by-a-test"}))
    made.ensure_bucket()
    made.put("t/a", b"x")
    made.ensure_bucket()
    assert made.get("t/a") == b"x"


@pytest.mark.parametrize(("missing", "named"), [("secret_key", "SECRET_KEY"), ("access_key", "ACCESS_KEY")])
def test_store_without_credentials_is_refused_with_the_variable(missing: str, named: str) -> None:
    settings = StoreSettings(access_key="a", secret_key=SecretStr("s"))
    empty = {"secret_key": SecretStr(""), "access_key": ""}[missing]
    with pytest.raises(ServiceError, match=f"FLUXSMITH_STORE_{named} is empty") as refused:
        ObjectStore(settings.model_copy(update={missing: empty}))
    assert (refused.value.reason, bool(refused.value.remedy)) == ("SETTINGS_INVALID", True)
