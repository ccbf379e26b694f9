"""One upload stream: parts in the right order make samples, any other order says what is wrong."""

from __future__ import annotations

import hashlib
import tracemalloc
from functools import partial

import pytest

from services.common.errors import InvalidInput, LimitExceeded
from services.encoder.datasets import sample_key
from services.encoder.records import SampleRecord
from services.encoder.settings import EncoderSettings
from services.encoder.upload import LARGEST_CHUNK_BYTES, Upload

DATA = bytes(range(100))


def record_of(name: str = "a", data: bytes = DATA) -> SampleRecord:
    """What a header announces."""
    digest = hashlib.sha256(data).hexdigest()
    return SampleRecord(sample_name=name, captions=("c",), content_digest=digest, size_bytes=len(data))


@pytest.fixture
def upload() -> Upload:
    """A stream whose target has come."""
    upload = Upload(EncoderSettings(max_samples=2))
    upload.begin("ds-1")
    return upload


@pytest.mark.parametrize("size", [1, 7, 99, 100])
def test_sample_is_complete_with_its_last_chunk(upload: Upload, size: int) -> None:
    upload.begin_sample(record_of())
    for start in range(0, len(DATA), size):
        assert upload.take_complete() is None
        upload.add(DATA[start : start + size])
    assert upload.take_complete() == (record_of(), DATA)
    assert upload.take_complete() is None
    upload.end()


def test_samples_follow_each_other(upload: Upload) -> None:
    for name in ("a", "b"):
        upload.begin_sample(record_of(name))
        upload.add(DATA)
        assert upload.take_complete() == (record_of(name), DATA)
    upload.end()


def test_target_must_come_first() -> None:
    upload = Upload(EncoderSettings())
    for part in (partial(upload.begin_sample, record_of()), upload.end, partial(upload.begin, "")):
        with pytest.raises(InvalidInput, match="target"):
            part()


def test_target_comes_once(upload: Upload) -> None:
    with pytest.raises(InvalidInput, match="twice"):
        upload.begin("ds-2")
    assert upload.dataset_id == "ds-1"


def test_bytes_need_a_sample(upload: Upload) -> None:
    with pytest.raises(InvalidInput, match="belongs to no sample"):
        upload.add(b"x")


def test_bytes_after_a_complete_sample_need_another(upload: Upload) -> None:
    upload.begin_sample(record_of())
    upload.add(DATA)
    upload.take_complete()
    with pytest.raises(InvalidInput, match="belongs to no sample"):
        upload.add(b"x")


def test_too_many_bytes_are_refused_at_once(upload: Upload) -> None:
    upload.begin_sample(record_of())
    upload.add(DATA)
    with pytest.raises(InvalidInput, match="'a' goes past its end"):
        upload.add(b"x")


def test_chunk_over_its_limit_is_refused(upload: Upload) -> None:
    upload.begin_sample(record_of(data=b"x" * (LARGEST_CHUNK_BYTES + 1)))
    with pytest.raises(InvalidInput, match=f"has {LARGEST_CHUNK_BYTES + 1} bytes"):
        upload.add(b"x" * (LARGEST_CHUNK_BYTES + 1))


@pytest.mark.parametrize("end", [Upload.end, lambda upload: upload.begin_sample(record_of("b"))])
def test_sample_that_is_left_incomplete_is_named(upload: Upload, end: object) -> None:
    assert callable(end)
    upload.begin_sample(record_of())
    upload.add(DATA[:30])
    with pytest.raises(InvalidInput, match="'a' is incomplete") as caught:
        end(upload)
    assert "70 more bytes" in caught.value.remedy


def test_bytes_that_changed_on_the_way_are_refused(upload: Upload) -> None:
    upload.begin_sample(record_of())
    upload.add(DATA[::-1])
    with pytest.raises(InvalidInput) as caught:
        upload.take_complete()
    assert caught.value.reason == "DIGEST_MISMATCH"


def send(upload: Upload, name: str) -> None:
    """Upload one whole sample."""
    upload.begin_sample(record_of(name))
    upload.add(DATA)
    assert upload.take_complete()


def test_dataset_takes_no_more_than_its_limit(upload: Upload) -> None:
    upload.expect({sample_key("old")})
    send(upload, "new")
    with pytest.raises(LimitExceeded, match="more than 2") as caught:
        send(upload, "one too many")
    assert "FLUXSMITH_ENCODER_MAX_SAMPLES" in caught.value.remedy


def test_replacing_a_sample_does_not_count(upload: Upload) -> None:
    upload.expect({sample_key("a"), sample_key("b")})
    send(upload, "a")
    send(upload, "a")
    upload.end()


def test_unfinished_sample_waits_on_disk() -> None:
    upload = Upload(EncoderSettings())
    upload.begin("ds-1")
    data, chunk = bytes(12 * LARGEST_CHUNK_BYTES), bytes(LARGEST_CHUNK_BYTES)
    upload.begin_sample(record_of(data=data))
    tracemalloc.start()
    for _ in range(11):
        upload.add(chunk)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * LARGEST_CHUNK_BYTES
    upload.add(chunk)
    assert upload.take_complete() == (record_of(data=data), data)
