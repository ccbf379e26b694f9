"""What a job trains on is found when it is created, and held until it has ended."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from services.common.cache import ManifestPointer, dataset_prefix, hold_key, manifest_key
from services.common.errors import InvalidInput, NotFound, NotReady
from services.common.object_store import ObjectStore
from services.common.sweep import SweepMarker, marker_key
from services.trainer.config import TrainConfig
from services.trainer.data.holds import release_ended
from services.trainer.data.references import DatasetReferences
from services.trainer.database.job_store import JobStore
from services.trainer.jobs import DatasetReference, JobState, NewJob
from tests.services.trainer.conftest import MakeDataset, publish

DATASET, OTHER = f"ds-{'0' * 20}", f"ds-{'1' * 20}"
READY = DatasetReference(dataset_id=DATASET, manifest_digest="0" * 64)


def point(store: ObjectStore, tenant: str, dataset_id: str, *, digest: str = "0" * 64, fingerprint: str = "f") -> None:
    """Make a dataset READY."""
    pointer = ManifestPointer(
        manifest_digest=digest, encoder_fingerprint=fingerprint, revision="", sample_count=1, cached_count=0
    )
    store.put(f"{dataset_prefix(tenant, dataset_id)}dataset.json", b"{}")
    store.put(f"{dataset_prefix(tenant, dataset_id)}manifest.json", pointer.model_dump_json().encode())


def want(store: ObjectStore, tenant: str, dataset_id: str) -> None:
    """Make a dataset ENCODING."""
    store.put(f"{dataset_prefix(tenant, dataset_id)}dataset.json", b"{}")
    store.put(f"{dataset_prefix(tenant, dataset_id)}encoding.json", b'{"encoding_id": "enc-1"}')


@pytest.fixture
def references(store: ObjectStore, tenant: str) -> DatasetReferences:
    """Of a tenant without datasets."""
    return DatasetReferences(store, tenant)


@pytest.mark.parametrize("while_encoding", [False, True])
def test_ready_dataset_is_pinned_to_its_manifest(
    references: DatasetReferences, store: ObjectStore, tenant: str, while_encoding: bool
) -> None:
    point(store, tenant, DATASET)
    assert references.find("dataset_id", DATASET, while_encoding=while_encoding) == READY


def test_dataset_being_encoded_is_pinned_to_the_encoding_if_that_is_wanted(
    references: DatasetReferences, store: ObjectStore, tenant: str
) -> None:
    point(store, tenant, DATASET)
    want(store, tenant, DATASET)
    with pytest.raises(NotReady, match="is not encoded yet"):
        references.find("dataset_id", DATASET)
    found = references.find("dataset_id", DATASET, while_encoding=True)
    assert found == DatasetReference(dataset_id=DATASET, encoding_id="enc-1")


def test_dataset_that_nobody_encodes_is_never_waited_for(
    references: DatasetReferences, store: ObjectStore, tenant: str
) -> None:
    store.put(f"{dataset_prefix(tenant, DATASET)}dataset.json", b"{}")
    with pytest.raises(NotReady) as caught:
        references.find("dataset_id", DATASET, while_encoding=True)
    assert caught.value.reason == "DATASET_NOT_READY"


def test_what_is_no_dataset_is_not_found(references: DatasetReferences) -> None:
    with pytest.raises(InvalidInput, match="dataset_id is empty"):
        references.find("dataset_id", "")
    for name in (DATASET, "../x"):
        with pytest.raises(NotFound):
            references.find("dataset_id", name)


def test_datasets_of_two_encoders_are_refused(references: DatasetReferences, store: ObjectStore, tenant: str) -> None:
    point(store, tenant, DATASET, digest="0" * 64, fingerprint="f")
    point(store, tenant, OTHER, digest="1" * 64, fingerprint="g")
    found = [references.find("dataset_id", dataset_id) for dataset_id in (DATASET, OTHER)]
    references.refuse_other_encoder(found[0], found[0])
    with pytest.raises(NotReady) as caught:
        references.refuse_other_encoder(*found)
    assert caught.value.reason == "ENCODER_MISMATCH"


def test_a_share_of_too_few_samples_is_refused_before_it_is_queued(
    references: DatasetReferences, store: ObjectStore, tenant: str
) -> None:
    point(store, tenant, DATASET)  # of one sample
    found = references.find("dataset_id", DATASET)
    references.refuse_too_few(found, 0.0)
    references.refuse_too_few(DatasetReference(dataset_id=OTHER, encoding_id="enc-1"), 0.5)  # nobody knows yet
    with pytest.raises(InvalidInput, match=r"has 1 sample$") as caught:
        references.refuse_too_few(found, 0.5)
    assert caught.value.reason == "DATASET_TOO_SMALL"


def test_hold_names_what_is_held_and_the_job(
    references: DatasetReferences, store: ObjectStore, tenant: str, make_dataset: MakeDataset
) -> None:
    digest = publish(store, tenant, make_dataset([(64, 64)]))
    references.hold("job-1", READY.model_copy(update={"manifest_digest": digest}))
    assert store.exists(hold_key(tenant, digest, "job-1"))


def test_manifest_that_was_collected_meanwhile_is_not_promised(references: DatasetReferences) -> None:
    with pytest.raises(NotReady, match="has been removed"):
        references.hold("job-1", READY)


def test_encoding_that_is_gone_is_not_promised(references: DatasetReferences, store: ObjectStore, tenant: str) -> None:
    reference = DatasetReference(dataset_id=DATASET, encoding_id="enc-1")
    with pytest.raises(NotReady, match="has been removed"):
        references.hold("job-1", reference)
    want(store, tenant, DATASET)
    references.hold("job-1", reference)


def test_hold_waits_for_a_sweep_before_it_promises_anything(
    references: DatasetReferences, store: ObjectStore, tenant: str, make_dataset: MakeDataset
) -> None:
    digest = publish(store, tenant, make_dataset([(64, 64)]))
    marker = SweepMarker(token="t", beat=datetime.now(UTC))
    store.put(marker_key(tenant), marker.model_dump_json().encode())

    def sweep() -> None:
        store.delete(manifest_key(tenant, digest))
        store.delete(marker_key(tenant))

    began_s = time.monotonic()
    threading.Timer(0.3, sweep).start()
    with pytest.raises(NotReady, match="has been removed"):
        references.hold("job-1", READY.model_copy(update={"manifest_digest": digest}))
    assert time.monotonic() - began_s >= 0.3


@pytest.mark.parametrize(
    ("state", "hours", "released"),
    [
        (JobState.QUEUED, 500, 0),
        (JobState.CANCELLED, 2, 1),
        (JobState.CANCELLED, 0.5, 0),
        (None, 2, 0),  # perhaps another trainer's
        (None, 200, 1),
    ],
)
def test_hold_goes_after_its_job(
    store: ObjectStore, tenant: str, job_store: JobStore, state: JobState | None, hours: float, released: int
) -> None:
    job_id = f"job-{'0' * 20}"
    if state:
        job_id = job_store.create(tenant, NewJob(dataset=READY, config=TrainConfig())).job_id
        if state is JobState.CANCELLED:
            job_store.cancel(tenant, job_id)
    store.put(hold_key(tenant, "0" * 64, job_id), b"")
    now = datetime.now(UTC) + timedelta(hours=hours)
    assert release_ended(store, job_store, tenant, now=now) == released
    assert len(list(store.keys(f"{tenant}/holds/"))) == 1 - released
