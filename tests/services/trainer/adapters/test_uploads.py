"""Adapters that users bring: put by whoever has the address, read only by their tenant and only as announced."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from urllib.parse import parse_qs, urlsplit

import pytest
import urllib3

from services.common.errors import InvalidInput, LimitExceeded, NotFound
from services.common.object_store import ObjectStore
from services.trainer.adapters import uploads
from services.trainer.adapters.uploads import adapter_upload, read_warm_start, warm_start_key
from tests.services.damage import damage

LORA = b"bytes of a LoRA file"
DIGEST = hashlib.sha256(LORA).hexdigest()
OF_JOB = "jobs/job-0123456789abcdef0123/2/lora.safetensors"


def test_what_is_put_to_the_address_is_read_for_the_job(store: ObjectStore, tenant: str) -> None:
    upload = adapter_upload(store, tenant, DIGEST)
    assert urllib3.request("PUT", upload.url, body=LORA).status == 200
    assert read_warm_start(store, tenant, upload.uri) == LORA


def test_address_to_put_to_lives_for_an_hour(store: ObjectStore, tenant: str) -> None:
    upload = adapter_upload(store, tenant, DIGEST)
    assert upload.lifetime == timedelta(hours=1)
    assert parse_qs(urlsplit(upload.url).query)["X-Amz-Expires"] == ["3600"]


def test_upload_of_other_bytes_is_refused_when_it_is_read(store: ObjectStore, tenant: str) -> None:
    upload = adapter_upload(store, tenant, DIGEST)
    urllib3.request("PUT", upload.url, body=b"other bytes")
    with pytest.raises(InvalidInput, match="digest") as caught:
        read_warm_start(store, tenant, upload.uri)
    assert caught.value.reason == "WARM_START_DAMAGED"


@pytest.mark.parametrize("digest", ["", "abc", DIGEST.upper(), DIGEST + "0", "../" * 20 + "a" * 4, DIGEST + "\n"])
def test_no_address_for_what_is_no_digest(store: ObjectStore, tenant: str, digest: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        adapter_upload(store, tenant, digest)
    assert [violation.field for violation in caught.value.violations] == ["content_digest"]


@pytest.mark.parametrize("name", [OF_JOB, OF_JOB.replace("/2/", "/checkpoints/000050-2/"), OF_JOB.replace("/2/", "/")])
def test_what_a_job_of_the_tenant_published_is_read(store: ObjectStore, tenant: str, name: str) -> None:
    uri = store.uri(store.put(f"{tenant}/{name}", LORA).key)
    assert read_warm_start(store, tenant, uri) == LORA


def test_damaged_file_of_a_job_is_refused(store: ObjectStore, tenant: str) -> None:
    key = store.put(f"{tenant}/{OF_JOB}", LORA).key
    damage(store, key)
    with pytest.raises(InvalidInput) as caught:
        read_warm_start(store, tenant, store.uri(key))
    assert caught.value.reason == "WARM_START_DAMAGED"


@pytest.mark.parametrize(
    "uri",
    [
        "{bucket}" + OF_JOB,
        "{bucket}other/" + OF_JOB,
        "{bucket}{tenant}x/" + OF_JOB,
        "{bucket}{tenant}/jobs/../../other/" + OF_JOB,
        "{bucket}{tenant}/jobs/job-0123456789abcdef0123/../../../other/" + OF_JOB,
        "{bucket}{tenant}/jobs//" + OF_JOB,
        "{bucket}{tenant}/jobs/job-0123456789abcdef0123/checkpoints/000050-2/optimizer.safetensors",
        "{bucket}{tenant}/jobs/job-0123456789abcdef0123/checkpoints/lora.safetensors",
        "{bucket}{tenant}/datasets/x/lora.safetensors",
        "{bucket}{tenant}/jobs/job-0123456789abcdef0123/2/previews/000000-0.png",
        "{bucket}{tenant}/adapters/a.safetensors",
        "{bucket}{tenant}/" + OF_JOB + "\n",
        "s3://elsewhere/{tenant}/" + OF_JOB,
        "https://example.com/lora.safetensors",
        "{tenant}/" + OF_JOB,
        "",
    ],
)
def test_any_other_address_is_refused_whatever_lies_there(store: ObjectStore, tenant: str, uri: str) -> None:
    store.put(f"other/{OF_JOB}", LORA)
    with pytest.raises(InvalidInput) as caught:
        read_warm_start(store, tenant, uri.format(bucket=store.uri(""), tenant=tenant))
    assert caught.value.reason == "WARM_START_FORBIDDEN"


def test_missing_file_is_not_found_with_a_remedy(store: ObjectStore, tenant: str) -> None:
    with pytest.raises(NotFound, match=DIGEST) as caught:
        read_warm_start(store, tenant, adapter_upload(store, tenant, DIGEST).uri)
    assert (caught.value.reason, "Upload the file" in caught.value.remedy) == ("WARM_START_NOT_FOUND", True)


def test_file_that_is_too_large_is_refused_unread(
    store: ObjectStore, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MOST_BYTES", len(LORA) - 1)
    uri = store.uri(store.put(f"{tenant}/{OF_JOB}", LORA).key)
    damage(store, f"{tenant}/{OF_JOB}", LORA + b"!")  # whoever reads it says so
    with pytest.raises(LimitExceeded, match=str(len(LORA) + 1)) as caught:
        read_warm_start(store, tenant, uri)
    assert caught.value.reason == "WARM_START_TOO_LARGE"


def test_file_of_the_largest_size_is_read(store: ObjectStore, tenant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MOST_BYTES", len(LORA))
    uri = store.uri(store.put(f"{tenant}/{OF_JOB}", LORA).key)
    assert read_warm_start(store, tenant, uri) == LORA


def test_file_whose_key_only_begins_like_it_is_another(store: ObjectStore, tenant: str) -> None:
    store.put(f"{tenant}/{OF_JOB}.old", LORA)
    with pytest.raises(NotFound):
        warm_start_key(store, tenant, store.uri(f"{tenant}/{OF_JOB}"))
