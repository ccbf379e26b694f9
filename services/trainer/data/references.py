"""What a new job trains on: found when it is created, and held from then on, so that nothing of it is collected."""

from __future__ import annotations

from services.common.cache import (
    ManifestPointer,
    dataset_prefix,
    encoding_prefix,
    hold_key,
    manifest_key,
    read_pointer,
    wanted_encoding_id,
)
from services.common.errors import NotReady
from services.common.fields import invalid_field, require_id, unknown
from services.common.object_store import ObjectStore
from services.common.sweep import wait_for_sweep
from services.trainer.data.held_out import refuse_too_few
from services.trainer.jobs import DatasetReference


class DatasetReferences:
    """Finds and holds datasets of one tenant."""

    def __init__(self, objects: ObjectStore, tenant: str) -> None:
        self._objects = objects
        self._tenant = tenant
        self._pointers: dict[str, ManifestPointer] = {}

    def find(self, field: str, dataset_id: str, *, while_encoding: bool = False) -> DatasetReference:
        """The dataset as it is now. Raises `NotFound`, or `NotReady` unless it is READY or may still be encoding."""
        if not dataset_id:
            raise invalid_field(field, "is empty", "Name a dataset that the encoder has encoded.")
        require_id("dataset", dataset_id)
        encoding_id = wanted_encoding_id(self._objects, self._tenant, dataset_id)
        if not encoding_id and (pointer := read_pointer(self._objects, self._tenant, dataset_id)):
            self._pointers[pointer.manifest_digest] = pointer
            return DatasetReference(dataset_id=dataset_id, manifest_digest=pointer.manifest_digest)
        if encoding_id and while_encoding:
            return DatasetReference(dataset_id=dataset_id, encoding_id=encoding_id)
        if not self._objects.exists(f"{dataset_prefix(self._tenant, dataset_id)}dataset.json"):
            raise unknown("dataset", dataset_id)
        raise NotReady(
            f"{field}: dataset {dataset_id!r} is not encoded yet",
            reason="DATASET_NOT_READY",
            remedy="Encode it, wait until it is READY, then create the job; or begin earlier with "
            "start_while_encoding.",
        )

    def refuse_other_encoder(self, dataset: DatasetReference, held_out: DatasetReference) -> None:
        """Raise `NotReady` when the two are known to come from different encoders."""
        known = (self._pointers.get(reference.manifest_digest) for reference in (dataset, held_out))
        if len({pointer.encoder_fingerprint for pointer in known if pointer}) > 1:
            raise encoder_mismatch()

    def refuse_too_few(self, dataset: DatasetReference, share: float) -> None:
        """Raise `InvalidInput` when it is known to have too few samples to hold out a share of them."""
        if pointer := self._pointers.get(dataset.manifest_digest):
            refuse_too_few(pointer.sample_count, share)

    def hold(self, job_id: str, *references: DatasetReference) -> None:
        """Note that the job needs them; raises `NotReady` when one has been collected meanwhile."""
        for reference in references:
            self._objects.put(hold_key(self._tenant, reference.held_by, job_id), b"")
        wait_for_sweep(self._objects, self._tenant)
        for reference in references:
            if not self._is_there(reference):
                raise NotReady(
                    f"what was encoded of dataset {reference.dataset_id!r} has been removed",
                    reason="DATASET_NOT_READY",
                    remedy="Encode it again, then create the job.",
                )

    def _is_there(self, reference: DatasetReference) -> bool:
        if reference.manifest_digest:
            return self._objects.exists(manifest_key(self._tenant, reference.manifest_digest))
        wanted = wanted_encoding_id(self._objects, self._tenant, reference.dataset_id)
        end = f"{encoding_prefix(self._tenant, reference.encoding_id)}end.json"
        return wanted == reference.encoding_id or self._objects.exists(end)


def encoder_mismatch() -> NotReady:
    """The error for a held-out dataset whose loss could not be compared."""
    return NotReady(
        "the two datasets were encoded by encoders of different weights or precision",
        reason="ENCODER_MISMATCH",
        remedy="Encode both again with the encoder that runs now.",
    )
