"""Datasets as they lie in the object store: who reads these keys needs nothing else to know a dataset's state.

dataset.json                    made by CreateDataset
originals/{sha256}              image files as uploaded
samples/{sha256 of name}.json   one record a sample, written after its image: what is listed is complete
revision.json                   another token after every change of the samples
encoding.json                   the encoding that is wanted; removed when it has ended
outcome.json                    how the last encoding ended: what failed it, and problems of single samples
manifest.json                   pointer to the result, and the revision that it holds for (services/common/cache.py)

Samples are always taken in the order of their keys: random with respect to their names, and the same for everyone.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime

from pydantic import BaseModel

from services.common.cache import (
    EncodingEnd,
    ManifestPointer,
    Revision,
    dataset_prefix,
    encoding_prefix,
    read_pointer,
    read_record,
    read_revision,
)
from services.common.errors import AlreadyExists, NotFound, NotReady
from services.common.fields import require_id, unknown
from services.common.object_store import ObjectDamaged, ObjectMissing, ObjectStore
from services.common.sweep import read_marker, wait_for_sweep
from services.encoder.locks import NamedLocks
from services.encoder.overlap import overlapped
from services.encoder.records import (
    DatasetRecord,
    EncodingOptions,
    EncodingOutcome,
    SampleRecord,
    WantedEncoding,
)

log = logging.getLogger(__name__)

READERS = 8
LOST = "lost"  # in place of a digest


class Datasets:
    """Reads and writes datasets of all tenants. Safe to use from several threads."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self._locks = NamedLocks()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="records")

    def close(self) -> None:
        """End the threads that read."""
        self._readers.shutdown()

    def create(self, tenant: str, *, display_name: str, request_id: str) -> DatasetRecord:
        """Make a dataset. The same `request_id` gives the same dataset; raises `AlreadyExists` for another name."""
        token = hashlib.sha256(f"{tenant}/{request_id}".encode()).hexdigest() if request_id else secrets.token_hex(16)
        record = DatasetRecord(dataset_id=f"ds-{token[:20]}", display_name=display_name, create_time=datetime.now(UTC))
        with self._locks.held(tenant, record.dataset_id):
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
        """The dataset; raises `NotFound`, or `ObjectDamaged` for one that can only be deleted."""
        require_id("dataset", dataset_id)
        key = f"{dataset_prefix(tenant, dataset_id)}dataset.json"
        try:
            return read_record(self.store, key, DatasetRecord)
        except ObjectMissing as error:
            raise unknown("dataset", dataset_id) from error
        except ObjectDamaged as error:
            raise ObjectDamaged(key, remedy="Delete this dataset and upload its samples to a new one.") from error

    def ids(self, tenant: str) -> Iterator[str]:
        """Identifiers of a tenant's datasets, in order."""
        return self.store.folders(f"{tenant}/datasets/")

    def delete(self, tenant: str, dataset_id: str) -> None:
        """Remove a dataset, its record last, so that a deletion that was cut short can be repeated."""
        prefix = dataset_prefix(tenant, dataset_id)
        with self._changing(tenant, dataset_id, damaged_too=True):
            self.store.delete(f"{prefix}manifest.json")
            for part in ("originals/", "samples/", "contact_sheets/"):
                self.store.delete_prefix(f"{prefix}{part}")
            for name in ("outcome.json", "revision.json", "encoding.json", "dataset.json"):
                self.store.delete(f"{prefix}{name}")

    def put_sample(self, tenant: str, dataset_id: str, record: SampleRecord, image: bytes) -> None:
        """Store a sample durably. The dataset is no longer READY: what was encoded is not what is there."""
        prefix = dataset_prefix(tenant, dataset_id)
        with self._changing(tenant, dataset_id):
            self.store.put(f"{prefix}originals/{record.content_digest}", image)
            # Before as well as after: whatever is killed in between, no result holds for samples that it did not see.
            self._write(tenant, dataset_id, "revision.json", Revision(token=secrets.token_hex(8)))
            self._write(tenant, dataset_id, f"samples/{sample_key(record.sample_name)}.json", record)
            self._write(tenant, dataset_id, "revision.json", Revision(token=secrets.token_hex(8)))
            if read_marker(self.store, tenant):  # a sweep may have taken the image for that of a replaced sample
                wait_for_sweep(self.store, tenant)
                self.store.put(f"{prefix}originals/{record.content_digest}", image)

    def samples(self, tenant: str, dataset_id: str, *, after: str | None = None) -> Iterator[SampleRecord]:
        """The samples in the order of their keys, those after the sample called `after` if given; few in memory.

        A damaged record comes as one without captions (`lost_record`): uploading its sample again mends it.
        """
        prefix = f"{dataset_prefix(tenant, dataset_id)}samples/"
        start_after = None if after is None else f"{prefix}{sample_key(after)}.json"
        keys = self.store.keys(prefix, start_after=start_after)
        return overlapped(keys, self._sample, self._readers, ahead=4 * READERS)

    def _sample(self, key: str) -> SampleRecord:
        try:
            return read_record(self.store, key, SampleRecord)
        except (ObjectMissing, ObjectDamaged):
            return lost_record(key)

    def has_sample(self, tenant: str, dataset_id: str, sample_name: str) -> bool:
        """Whether there is a sample of this name."""
        return self.store.exists(f"{dataset_prefix(tenant, dataset_id)}samples/{sample_key(sample_name)}.json")

    def sample_keys(self, tenant: str, dataset_id: str) -> Iterator[str]:
        """The keys (`sample_key`) of the stored samples, in order."""
        for key in self.store.keys(f"{dataset_prefix(tenant, dataset_id)}samples/"):
            yield key.rpartition("/")[2].removesuffix(".json")

    def sample_count(self, tenant: str, dataset_id: str) -> int:
        """How many samples are stored."""
        return sum(1 for _ in self.sample_keys(tenant, dataset_id))

    def image(self, tenant: str, dataset_id: str, record: SampleRecord) -> bytes:
        """The image file of a sample, its digest checked."""
        key = f"{dataset_prefix(tenant, dataset_id)}originals/{record.content_digest}"
        return self.store.get(key, digest=record.content_digest)

    def revision(self, tenant: str, dataset_id: str) -> str:
        """A token that is another one after every change of the samples."""
        return read_revision(self.store, tenant, dataset_id).token

    def begin_encoding(self, tenant: str, dataset_id: str, options: EncodingOptions) -> WantedEncoding:
        """Note durably that an encoding is wanted; a restarted encoder takes it up again.

        One that is under way, here or in another encoder, is joined; raises `NotReady` when it has other options.
        """
        require_id("dataset", dataset_id)
        with self._locks.held(tenant, dataset_id):
            self.get(tenant, dataset_id)
            wanted = self.wanted_encoding(tenant, dataset_id)
            if wanted is None:
                wanted = WantedEncoding(encoding_id=f"enc-{secrets.token_hex(10)}", options=options)
                self._write(tenant, dataset_id, "encoding.json", wanted)
        if wanted.options != options:
            raise NotReady(
                f"dataset {dataset_id!r} is being encoded with other options",
                reason="DATASET_ENCODING",
                remedy="Wait until it is READY or FAILED, then encode with these.",
            )
        return wanted

    def wanted_encoding(self, tenant: str, dataset_id: str) -> WantedEncoding | None:
        """The encoding that has not ended, or None."""
        try:
            return read_record(self.store, f"{dataset_prefix(tenant, dataset_id)}encoding.json", WantedEncoding)
        except ObjectMissing:
            return None
        except ObjectDamaged:
            log.warning("dataset %s: what encoding was wanted is not legible; ask for it again", dataset_id)
            return None

    def all_wanted_encodings(self) -> Iterator[tuple[str, str, WantedEncoding]]:
        """Tenant, dataset and encoding of all that have not ended."""
        for tenant in self.store.folders(""):
            for dataset_id in self.ids(tenant):
                if wanted := self.wanted_encoding(tenant, dataset_id):
                    yield tenant, dataset_id, wanted

    def end_encoding(
        self,
        tenant: str,
        dataset_id: str,
        wanted: WantedEncoding,
        outcome: EncodingOutcome,
        pointer: ManifestPointer | None,
    ) -> WantedEncoding | None:
        """Note how the encoding has ended. A failed one takes the result of an earlier one away.

        Changes nothing of the dataset when another encoder has ended it, and returns what is wanted then, if anything.
        """
        prefix = dataset_prefix(tenant, dataset_id)
        end = EncodingEnd(manifest_digest=pointer.manifest_digest if pointer else "", failure=outcome.failure)
        with self._locks.held(tenant, dataset_id):
            self.store.put(f"{encoding_prefix(tenant, wanted.encoding_id)}end.json", end.model_dump_json().encode())
            now_wanted = self.wanted_encoding(tenant, dataset_id)
            if now_wanted != wanted:
                return now_wanted
            self._write(tenant, dataset_id, "outcome.json", outcome)
            if pointer:
                self._write(tenant, dataset_id, "manifest.json", pointer)
            else:
                self.store.delete(f"{prefix}manifest.json")
            self.store.delete(f"{prefix}encoding.json")
            return None

    def outcome(self, tenant: str, dataset_id: str) -> EncodingOutcome | None:
        """How the last encoding ended, or None when samples have come since."""
        try:
            outcome = read_record(self.store, f"{dataset_prefix(tenant, dataset_id)}outcome.json", EncodingOutcome)
        except (ObjectMissing, ObjectDamaged):
            return None
        return outcome if outcome.revision == self.revision(tenant, dataset_id) else None

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
                remedy="Wait until it is READY or FAILED, then try again.",
            )

    @contextmanager
    def _changing(self, tenant: str, dataset_id: str, *, damaged_too: bool = False) -> Iterator[None]:
        """Hold the dataset while its samples change: no encoding begins meanwhile, and none is under way."""
        require_id("dataset", dataset_id)
        with self._locks.held(tenant, dataset_id):
            try:
                self.refuse_while_encoding(tenant, dataset_id)
            except ObjectDamaged:
                if not damaged_too:
                    raise
            yield

    def _write(self, tenant: str, dataset_id: str, name: str, record: BaseModel) -> None:
        key = f"{dataset_prefix(tenant, dataset_id)}{name}"
        self.store.put(key, record.model_dump_json().encode(), content_type="application/json")


def lost_record(key: str) -> SampleRecord:
    """Stands for a record that the store has lost; its image is not to be found either."""
    name = f"(lost record {key.rpartition('/')[2][:12]})"
    return SampleRecord(sample_name=name, captions=(), content_digest=LOST, size_bytes=0)


def sample_key(sample_name: str) -> str:
    """The name of a sample's record: names may hold any character, keys may not."""
    return hashlib.sha256(sample_name.encode()).hexdigest()
