"""Datasets as they lie in the object store: who reads these keys needs nothing else to know a dataset's state.

dataset.json                    made by CreateDataset
originals/{sha256}              image files as uploaded
samples/{sha256 of name}.json   one record a sample, written after its image: what is listed is complete
encoding.json                   options of the encoding that is wanted; removed when it has ended
outcome.json                    how the last encoding ended: what failed it, and problems of single samples
manifest.json                   pointer to the result (services/common/cache.py)
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, Field

from services.common.cache import ManifestPointer, dataset_prefix, read_pointer
from services.common.errors import AlreadyExists, NotFound, NotReady
from services.common.fields import require_id, unknown
from services.common.object_store import ObjectMissing, ObjectStore
from services.encoder.images import Problem

READERS = 8


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DatasetRecord(_Record):
    """A dataset as created."""

    dataset_id: str
    display_name: str
    create_time: datetime


class SampleRecord(_Record):
    """A stored sample: its captions, and where its image lies."""

    sample_name: str
    captions: tuple[str, ...]
    content_digest: str
    size_bytes: int


class SampleProblem(_Record):
    """What is wrong with one sample."""

    sample_name: str
    problem: Problem
    message: str


class EncodingOptions(_Record):
    """How images become latents; part of every cache key."""

    resolution_px: int = Field(ge=64, le=2048, multiple_of=16)
    flip: bool = False
    skip_bad_samples: bool = False


class EncodingOutcome(_Record):
    """How an encoding ended. `failure` is empty when a manifest was published."""

    failure: str = ""
    problems: tuple[SampleProblem, ...] = ()


class Datasets:
    """Reads and writes datasets of all tenants. Safe to use from several threads."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self._locks: defaultdict[tuple[str, str], threading.Lock] = defaultdict(threading.Lock)

    def create(self, tenant: str, *, display_name: str, request_id: str) -> DatasetRecord:
        """Make a dataset. The same `request_id` gives the same dataset; raises `AlreadyExists` for another name."""
        token = hashlib.sha256(f"{tenant}/{request_id}".encode()).hexdigest() if request_id else secrets.token_hex(16)
        record = DatasetRecord(dataset_id=f"ds-{token[:20]}", display_name=display_name, create_time=datetime.now(UTC))
        try:
            known = self.get(tenant, record.dataset_id)
        except NotFound:
            self._write(tenant, record.dataset_id, "dataset.json", record)
            return record
        if known.display_name != display_name:
            raise AlreadyExists(
                f"request_id {request_id!r} was used with another payload",
                reason="REQUEST_ID_REUSED",
                remedy="Use a new request_id for a new dataset.",
            )
        return known

    def get(self, tenant: str, dataset_id: str) -> DatasetRecord:
        """The dataset; raises `NotFound`."""
        require_id("dataset", dataset_id)
        try:
            return DatasetRecord.model_validate_json(self._read(tenant, dataset_id, "dataset.json"))
        except ObjectMissing as error:
            raise unknown("dataset", dataset_id) from error

    def ids(self, tenant: str) -> Iterator[str]:
        """Identifiers of a tenant's datasets, in order."""
        return self.store.folders(f"{tenant}/datasets/")

    def delete(self, tenant: str, dataset_id: str) -> None:
        """Remove a dataset, its record last, so that a deletion that was cut short can be repeated."""
        prefix = dataset_prefix(tenant, dataset_id)
        with self._changing(tenant, dataset_id):
            self.store.delete(f"{prefix}manifest.json")
            for part in ("originals/", "samples/"):
                self.store.delete_prefix(f"{prefix}{part}")
            self.store.delete(f"{prefix}outcome.json")
            self.store.delete(f"{prefix}dataset.json")

    def put_sample(self, tenant: str, dataset_id: str, record: SampleRecord, image: bytes) -> None:
        """Store a sample durably. The dataset is no longer READY: what was encoded is not what is there."""
        prefix = dataset_prefix(tenant, dataset_id)
        with self._changing(tenant, dataset_id):
            self.store.put(f"{prefix}originals/{record.content_digest}", image)
            for name in ("manifest.json", "outcome.json"):
                self.store.delete(f"{prefix}{name}")
            name = hashlib.sha256(record.sample_name.encode()).hexdigest()
            self._write(tenant, dataset_id, f"samples/{name}.json", record)

    def samples(self, tenant: str, dataset_id: str) -> list[SampleRecord]:
        """The samples by name."""
        keys = list(self.store.keys(f"{dataset_prefix(tenant, dataset_id)}samples/"))
        with ThreadPoolExecutor(READERS) as readers:
            records = [SampleRecord.model_validate_json(data) for data in readers.map(self.store.get, keys)]
        return sorted(records, key=lambda record: record.sample_name)

    def sample_count(self, tenant: str, dataset_id: str) -> int:
        """How many samples are stored."""
        return sum(1 for _ in self.store.keys(f"{dataset_prefix(tenant, dataset_id)}samples/"))

    def image(self, tenant: str, dataset_id: str, record: SampleRecord) -> bytes:
        """The image file of a sample, its digest checked."""
        key = f"{dataset_prefix(tenant, dataset_id)}originals/{record.content_digest}"
        return self.store.get(key, digest=record.content_digest)

    def begin_encoding(self, tenant: str, dataset_id: str, options: EncodingOptions) -> None:
        """Note durably that an encoding is wanted; a restarted encoder takes it up again."""
        require_id("dataset", dataset_id)
        with self._lock(tenant, dataset_id):
            self.get(tenant, dataset_id)
            self._write(tenant, dataset_id, "encoding.json", options)

    def wanted_encoding(self, tenant: str, dataset_id: str) -> EncodingOptions | None:
        """Options of the encoding that has not ended, or None."""
        try:
            return EncodingOptions.model_validate_json(self._read(tenant, dataset_id, "encoding.json"))
        except ObjectMissing:
            return None

    def all_wanted_encodings(self) -> Iterator[tuple[str, str, EncodingOptions]]:
        """Tenant, dataset and options of every encoding that has not ended."""
        for tenant in self.store.folders(""):
            for dataset_id in self.ids(tenant):
                if options := self.wanted_encoding(tenant, dataset_id):
                    yield tenant, dataset_id, options

    def end_encoding(self, tenant: str, dataset_id: str, outcome: EncodingOutcome) -> None:
        """Note how the encoding has ended. A failed one takes the result of an earlier one away."""
        prefix = dataset_prefix(tenant, dataset_id)
        self._write(tenant, dataset_id, "outcome.json", outcome)
        if outcome.failure:
            self.store.delete(f"{prefix}manifest.json")
        self.store.delete(f"{prefix}encoding.json")

    def outcome(self, tenant: str, dataset_id: str) -> EncodingOutcome | None:
        """How the last encoding ended, or None when samples have come since."""
        try:
            return EncodingOutcome.model_validate_json(self._read(tenant, dataset_id, "outcome.json"))
        except ObjectMissing:
            return None

    def pointer(self, tenant: str, dataset_id: str) -> ManifestPointer | None:
        """The result of the last encoding if the dataset is READY, else None."""
        return read_pointer(self.store, tenant, dataset_id)

    def refuse_while_encoding(self, tenant: str, dataset_id: str) -> None:
        """Raise `NotReady` while an encoding is under way, `NotFound` when there is no dataset."""
        self.get(tenant, dataset_id)
        if self.wanted_encoding(tenant, dataset_id):
            raise NotReady(
                f"dataset {dataset_id!r} is being encoded",
                reason="DATASET_ENCODING",
                remedy="Wait until it is READY or FAILED (WatchDataset), then try again.",
            )

    @contextmanager
    def _changing(self, tenant: str, dataset_id: str) -> Iterator[None]:
        """Hold the dataset while its samples change: no encoding begins meanwhile, and none is under way."""
        require_id("dataset", dataset_id)
        with self._lock(tenant, dataset_id):
            self.refuse_while_encoding(tenant, dataset_id)
            yield

    def _lock(self, tenant: str, dataset_id: str) -> threading.Lock:
        return self._locks[tenant, dataset_id]

    def _read(self, tenant: str, dataset_id: str, name: str) -> bytes:
        return self.store.get(f"{dataset_prefix(tenant, dataset_id)}{name}")

    def _write(self, tenant: str, dataset_id: str, name: str, record: BaseModel) -> None:
        key = f"{dataset_prefix(tenant, dataset_id)}{name}"
        self.store.put(key, record.model_dump_json().encode(), content_type="application/json")
