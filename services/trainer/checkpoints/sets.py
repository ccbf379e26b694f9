"""The objects of one checkpoint in the store: its parts, then the manifest that makes them one.

    {tenant}/jobs/{job}/checkpoints/{step}-{epoch}/adapter.safetensors, optimizer.safetensors, ...
    {tenant}/jobs/{job}/checkpoints/{step}-{epoch}/lora.safetensors     what would be published at that moment
    {tenant}/jobs/{job}/checkpoints/{step}-{epoch}/manifest.json        last

Whoever finds the manifest with the digest that the database knows finds everything. The epoch keeps a worker that has
lost the job from writing where the next one does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, JsonValue
from safetensors import SafetensorError
from torch import Tensor

from services.common.errors import ServiceError
from services.common.object_store import ObjectDamaged, ObjectMissing, ObjectStore
from services.trainer.checkpoints.fingerprints import Fingerprints
from services.trainer.checkpoints.parts import RunRecord, joined, part_file, part_tensors, split
from services.trainer.checkpoints.state import RunState
from services.trainer.config import TrainConfig
from services.trainer.jobs import Artifact, Checkpoint, Job
from services.trainer.results.job_files import LORA_FILE, checkpoints_prefix

FORMAT_VERSION: Literal[1] = 1
MANIFEST = "manifest.json"
# What names and packages raise for data that is whole but not what it should be.
WRONG_CONTENT = (KeyError, TypeError, ValueError, SafetensorError)


class CheckpointDamaged(ServiceError):
    """A checkpoint is not what was written, or of a format that this version does not read."""

    def __init__(self, checkpoint_id: str, what: str) -> None:
        super().__init__(
            f"checkpoint {checkpoint_id}: {what}",
            reason="CHECKPOINT_DAMAGED",
            remedy="The job goes on from the one before.",
        )


class CheckpointOfOtherBase(ServiceError):
    """A checkpoint is of another base model or configuration than the job has here."""

    def __init__(self, checkpoint_id: str, what: str) -> None:
        super().__init__(
            f"checkpoint {checkpoint_id} was written with another {what}",
            reason="CHECKPOINT_OF_OTHER_BASE",
            remedy="Go on with the job where FLUXSMITH_BASE_MODEL is the model that it began with.",
        )


class CheckpointOfOtherData(ServiceError):
    """A checkpoint is of data that were encoded otherwise than those that the job has now."""

    def __init__(self, checkpoint_id: str, what: str) -> None:
        super().__init__(
            f"checkpoint {checkpoint_id} was written with another {what}",
            reason="CHECKPOINT_OF_OTHER_DATA",
            remedy="The job goes on from the one before, or begins anew.",
        )


@dataclass(frozen=True, kw_only=True)
class Restored:
    """A state that was read, and what may keep the run from going on to the bit as it would have."""

    state: RunState
    warnings: tuple[str, ...]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class StoredPart(_Record):
    """One object of a set, with the sha256 of its bytes in hexadecimal."""

    key: str
    digest: str
    size_bytes: int


class SetManifest(_Record):
    """What is written last.

    `seed` and `run.steps_done` are the position in the data and in everything that is drawn: all draws are functions of
    the two, so there is no generator whose state would have to be kept. `parts` has the LoRA file too.
    """

    format_version: Literal[1] = FORMAT_VERSION
    job_id: str
    step: int
    epoch: int
    seed: int
    config: JsonValue
    config_digest: str
    fingerprints: Fingerprints
    parts: dict[str, StoredPart]
    run: RunRecord


def write_set(
    store: ObjectStore,
    job: Job,
    state: RunState,
    lora: bytes,
    fingerprints: Fingerprints,
    held_out_loss: float | None = None,
) -> Checkpoint:
    """Write a set, the manifest last; `lora` is the file that would be published now.

    The same state gives the same bytes, so that writing again after `Unavailable` changes nothing. In memory is one
    part at a time.
    """
    step = state.training.steps_done
    checkpoint_id = f"{step:06}-{job.epoch}"
    folder = f"{checkpoints_prefix(job.tenant, job.job_id)}{checkpoint_id}/"
    record, tensors = split(state)
    parts = {name: _put(store, f"{folder}{name}.safetensors", part_file(part)) for name, part in tensors.items()}
    parts["lora"] = _put(store, f"{folder}{LORA_FILE}", lora)
    config = job.config.model_dump_json()
    manifest = SetManifest(
        job_id=job.job_id,
        step=step,
        epoch=job.epoch,
        seed=job.config.seed,
        config=json.loads(config),
        config_digest=hashlib.sha256(config.encode()).hexdigest(),
        fingerprints=fingerprints,
        parts=parts,
        run=record,
    )
    stored = _put(store, f"{folder}{MANIFEST}", manifest.model_dump_json().encode(), content_type="application/json")
    return Checkpoint(
        checkpoint_id=checkpoint_id,
        step=step,
        uri=store.uri(stored.key),
        manifest_digest=stored.digest,
        size_bytes=stored.size_bytes + sum(part.size_bytes for part in parts.values()),
        lora=Artifact(
            artifact_name=f"checkpoints/{checkpoint_id}/{LORA_FILE}",
            uri=store.uri(parts["lora"].key),
            size_bytes=parts["lora"].size_bytes,
            content_digest=parts["lora"].digest,
        ),
        held_out_loss=held_out_loss,
    )


def read_set(store: ObjectStore, checkpoint: Checkpoint, job: Job, fingerprints: Fingerprints) -> Restored:
    """Read what a run goes on from, every byte checked against its digest.

    Raises `CheckpointDamaged`, `CheckpointOfOtherBase`, `CheckpointOfOtherData`, or `Unavailable` when the store does
    not answer. Programs of other versions are only warned of.
    """
    manifest = _manifest(store, checkpoint, job)
    _refuse_other(manifest, checkpoint.checkpoint_id, job, fingerprints)
    parts: dict[str, Mapping[str, Tensor]] = {}
    try:
        for name, part in manifest.parts.items():
            if name != "lora":
                parts[name] = part_tensors(_verified(store, part.key, part.digest, checkpoint))
        state = joined(manifest.run, parts)
    except WRONG_CONTENT as error:
        raise CheckpointDamaged(checkpoint.checkpoint_id, f"its parts do not fit each other ({error})") from error
    return Restored(state=state, warnings=_other_versions(manifest.fingerprints, fingerprints))


def delete_set(store: ObjectStore, checkpoint: Checkpoint) -> None:
    """Remove a set, its manifest first: what is left of it then is no checkpoint. No error when it is gone."""
    key = store.key_of(checkpoint.uri)
    if key and key.endswith(f"/{MANIFEST}"):
        store.delete(key)
        store.delete_prefix(key.removesuffix(MANIFEST))


def _put(store: ObjectStore, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> StoredPart:
    stored = store.put(key, data, content_type=content_type)
    return StoredPart(key=stored.key, digest=stored.digest, size_bytes=stored.size_bytes)


def _manifest(store: ObjectStore, checkpoint: Checkpoint, job: Job) -> SetManifest:
    key = store.key_of(checkpoint.uri)
    if key is None:
        raise CheckpointDamaged(checkpoint.checkpoint_id, f"{checkpoint.uri} is not an address of this object store")
    data = _verified(store, key, checkpoint.manifest_digest, checkpoint)
    try:
        fields: dict[str, Any] = json.loads(data)
        if fields["format_version"] != FORMAT_VERSION:
            what = f"its format is version {fields['format_version']}, and only {FORMAT_VERSION} can be read here"
            raise CheckpointDamaged(checkpoint.checkpoint_id, what)
        manifest = SetManifest.model_validate_json(data)
    except WRONG_CONTENT as error:
        raise CheckpointDamaged(checkpoint.checkpoint_id, "its manifest makes no sense") from error
    if manifest.job_id != job.job_id:
        raise CheckpointDamaged(checkpoint.checkpoint_id, f"it is of job {manifest.job_id}")
    return manifest


def _verified(store: ObjectStore, key: str, digest: str, checkpoint: Checkpoint) -> bytes:
    try:
        try:
            return store.get(key, digest=digest)
        except (ObjectMissing, ObjectDamaged):
            return store.get(key, digest=digest)  # what went wrong on the way comes whole the second time
    except ObjectMissing as error:
        raise CheckpointDamaged(checkpoint.checkpoint_id, f"{key.rpartition('/')[2]} is missing") from error
    except ObjectDamaged as error:
        what = f"{key.rpartition('/')[2]} is not what was written"
        raise CheckpointDamaged(checkpoint.checkpoint_id, what) from error


def _refuse_other(manifest: SetManifest, checkpoint_id: str, job: Job, here: Fingerprints) -> None:
    there = manifest.fingerprints
    if there.base != here.base:
        raise CheckpointOfOtherBase(checkpoint_id, "base model")
    if _config(manifest) != job.config:
        raise CheckpointOfOtherBase(checkpoint_id, "configuration")
    if there.encoder != here.encoder:
        raise CheckpointOfOtherData(checkpoint_id, "encoder")
    if any(a != b for a, b in zip(there.datasets, here.datasets, strict=False) if a and b):
        raise CheckpointOfOtherData(checkpoint_id, "dataset")


def _config(manifest: SetManifest) -> TrainConfig | None:
    """The configuration as this version reads it: a field that came since has its default on both sides."""
    try:
        return TrainConfig.model_validate(manifest.config)
    except ValueError:
        return None


def _other_versions(there: Fingerprints, here: Fingerprints) -> tuple[str, ...]:
    return tuple(
        f"the checkpoint was written with {name} {there.versions.get(name, 'unknown')}, and the job goes on with "
        f"{here.versions.get(name, 'unknown')}: what comes may differ in rounding from what would have come"
        for name in sorted(there.versions.keys() | here.versions.keys())
        if there.versions.get(name) != here.versions.get(name)
    )
