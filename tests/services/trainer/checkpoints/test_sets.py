"""A set of objects is a checkpoint as a whole or not at all, and whatever is wrong with it is told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import pytest
import torch
from diffusers import FluxTransformer2DModel
from pydantic import SecretStr

from services.common.errors import Unavailable
from services.common.object_store import ObjectStore, StoredObject
from services.common.settings import StoreSettings
from services.trainer.adapters.adapter import attached
from services.trainer.checkpoints.sets import (
    CheckpointDamaged,
    CheckpointOfOtherBase,
    CheckpointOfOtherData,
    delete_set,
    read_set,
    write_set,
)
from services.trainer.checkpoints.state import RunState
from services.trainer.config import TrainConfig
from services.trainer.config.choices import Optimizer
from services.trainer.jobs import Checkpoint, Job
from services.trainer.results.job_files import checkpoints_prefix
from services.trainer.train import Training
from tests.services.trainer.checkpoints.runs import (
    CUT,
    FINGERPRINTS,
    KINDS,
    STEPS,
    fields_of,
    go,
    job_of,
    state_of,
)

CONFIG = TrainConfig(**fields_of(Optimizer.ADAMW_8BIT, KINDS["pissa"], {"ema_decay": 0.9}))
PARTS = ("adapter", "optimizer", "average", "best", "pissa", "lora")


@pytest.fixture(scope="module")
def state(two_blocks: FluxTransformer2DModel) -> RunState:
    """A state that has every part."""
    with attached(two_blocks, CONFIG):
        training = Training(two_blocks, CONFIG, STEPS)
        go(training, CONFIG, 0, CUT)
        return state_of(training, two_blocks, CONFIG)


@pytest.fixture
def job(tenant: str) -> Job:
    """The job whose state it is."""
    return job_of(CONFIG, tenant)


@pytest.fixture
def written(store: ObjectStore, job: Job, state: RunState) -> Checkpoint:
    """Its checkpoint in the store."""
    return write_set(store, job, state, b"lora", FINGERPRINTS)


class DyingStore(ObjectStore):
    """A real store whose worker does not live to put more than so many objects into it, nor to delete a folder."""

    def __init__(self, store: ObjectStore, puts: int = 0) -> None:
        vars(self).update(vars(store))
        self._left = puts

    def put(
        self, key: str, data: bytes, *, content_type: str = "application/octet-stream", digest: str | None = None
    ) -> StoredObject:
        """Put, or die."""
        if not self._left:
            raise KeyboardInterrupt
        self._left -= 1
        return super().put(key, data, content_type=content_type, digest=digest)

    def delete_prefix(self, prefix: str) -> None:
        """Die."""
        raise KeyboardInterrupt(prefix)


def manifest_of(store: ObjectStore, checkpoint: Checkpoint) -> str:
    """Key of the manifest."""
    key = store.key_of(checkpoint.uri)
    assert key
    return key


def key_of(store: ObjectStore, checkpoint: Checkpoint, part: str) -> str:
    """Key of a part."""
    return manifest_of(store, checkpoint).replace("manifest.json", f"{part}.safetensors")


def rewritten(store: ObjectStore, checkpoint: Checkpoint, **fields: object) -> Checkpoint:
    """The same checkpoint with other fields in its manifest, as if it had been written so."""
    key = manifest_of(store, checkpoint)
    data = json.dumps(json.loads(store.get(key)) | fields).encode()
    store.put(key, data)
    return checkpoint.model_copy(update={"manifest_digest": hashlib.sha256(data).hexdigest()})


def damages(data: bytes) -> Iterator[bytes]:
    """The data cut, emptied, and with one bit flipped at its begin, in its middle and at its end."""
    yield data[: len(data) // 2]
    yield b""
    for at in (0, len(data) // 2, len(data) - 1):
        yield data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_set_has_every_part_and_says_how_large_it_is(store: ObjectStore, job: Job, written: Checkpoint) -> None:
    found = list(store.listed(checkpoints_prefix(job.tenant, job.job_id)))
    names = {entry.key.rpartition("/")[2] for entry in found}
    assert names == {f"{part}.safetensors" for part in PARTS} | {"manifest.json"}
    assert all(f"/checkpoints/{CUT:06}-1/" in entry.key for entry in found)
    assert written.size_bytes == sum(entry.size_bytes for entry in found)
    assert store.get(store.key_of(written.lora.uri) or "", digest=written.lora.content_digest) == b"lora"


def test_eight_bit_state_stays_eight_bit(state: RunState, store: ObjectStore, job: Job, written: Checkpoint) -> None:
    read = read_set(store, written, job, FINGERPRINTS).state

    def first_moments(of: RunState) -> list[torch.Tensor]:
        wrapped = "__bnb_optimizer_quant_state__"
        return [each.get(wrapped, each)["state1"] for each in of.training.optimizer["state"].values()]

    assert {tensor.dtype for tensor in first_moments(state)} == {torch.uint8, torch.float32}
    assert all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(first_moments(state), first_moments(read), strict=True)
    )


def test_same_state_gives_the_same_bytes(store: ObjectStore, job: Job, state: RunState, written: Checkpoint) -> None:
    assert write_set(store, job, state, b"lora", FINGERPRINTS) == written


@pytest.mark.parametrize("part", PARTS[:-1])
def test_damaged_part_is_told(store: ObjectStore, job: Job, written: Checkpoint, part: str) -> None:
    key = key_of(store, written, part)
    for damaged in damages(store.get(key)):
        store.put(key, damaged)
        with pytest.raises(CheckpointDamaged, match=f"{part}.safetensors is not what was written"):
            read_set(store, written, job, FINGERPRINTS)
    store.delete(key)
    with pytest.raises(CheckpointDamaged, match=f"{part}.safetensors is missing"):
        read_set(store, written, job, FINGERPRINTS)


def test_damaged_manifest_is_told(store: ObjectStore, job: Job, written: Checkpoint) -> None:
    key = manifest_of(store, written)
    for damaged in damages(store.get(key)):
        store.put(key, damaged)
        with pytest.raises(CheckpointDamaged, match=r"manifest.json is not what was written"):
            read_set(store, written, job, FINGERPRINTS)
    store.delete(key)
    with pytest.raises(CheckpointDamaged, match=r"manifest.json is missing"):
        read_set(store, written, job, FINGERPRINTS)


@pytest.mark.parametrize("puts", range(len(PARTS) + 1))
def test_worker_killed_between_two_objects_leaves_the_checkpoint_before(
    store: ObjectStore, job: Job, state: RunState, written: Checkpoint, puts: int
) -> None:
    next_claim = job.model_copy(update={"epoch": 2})
    with pytest.raises(KeyboardInterrupt):
        write_set(DyingStore(store, puts), next_claim, state, b"lora", FINGERPRINTS)
    assert not store.exists(f"{checkpoints_prefix(job.tenant, job.job_id)}{CUT:06}-2/manifest.json")
    assert read_set(store, written, next_claim, FINGERPRINTS).state.training.steps_done == CUT


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"format_version": 2}, "its format is version 2, and only 1 can be read here"),
        ({"job_id": "job-2"}, "it is of job job-2"),
        ({"run": {}}, "its manifest makes no sense"),
        ({"parts": {}}, "its parts do not fit each other"),
    ],
)
def test_manifest_that_is_no_manifest_of_the_job_is_told(
    store: ObjectStore, job: Job, written: Checkpoint, fields: dict[str, object], what: str
) -> None:
    with pytest.raises(CheckpointDamaged, match=what):
        read_set(store, rewritten(store, written, **fields), job, FINGERPRINTS)


def test_other_base_and_other_configuration_are_refused(store: ObjectStore, job: Job, written: Checkpoint) -> None:
    with pytest.raises(CheckpointOfOtherBase, match="base model"):
        read_set(store, written, job, FINGERPRINTS.model_copy(update={"base": "0" * 64}))
    other = job.model_copy(update={"config": job.config.model_copy(update={"seed": 4})})
    with pytest.raises(CheckpointOfOtherBase, match="configuration"):
        read_set(store, written, other, FINGERPRINTS)


@pytest.mark.parametrize(("fields", "what"), [({"encoder": "0"}, "encoder"), ({"datasets": ("0",)}, "dataset")])
def test_other_data_are_refused(
    store: ObjectStore, job: Job, written: Checkpoint, fields: dict[str, object], what: str
) -> None:
    with pytest.raises(CheckpointOfOtherData, match=what):
        read_set(store, written, job, FINGERPRINTS.model_copy(update=fields))


def test_data_that_are_not_known_yet_are_no_other_data(store: ObjectStore, job: Job, written: Checkpoint) -> None:
    assert read_set(store, written, job, FINGERPRINTS.model_copy(update={"datasets": ("",)}))


def test_configuration_without_a_field_that_came_since_is_the_same(
    store: ObjectStore, job: Job, written: Checkpoint
) -> None:
    config = json.loads(job.config.model_dump_json())
    del config["kohya_file"]
    assert read_set(store, rewritten(store, written, config=config), job, FINGERPRINTS)


def test_other_versions_are_warned_of(store: ObjectStore, job: Job, written: Checkpoint) -> None:
    here = FINGERPRINTS.model_copy(update={"versions": {"torch": "3.0", "peft": "1"}})
    peft, torch_ = read_set(store, written, job, here).warnings
    assert "peft unknown, and the job goes on with 1" in peft
    assert "torch 2.13.0, and the job goes on with 3.0" in torch_


def test_deleted_set_is_gone_and_deleting_again_is_no_error(store: ObjectStore, job: Job, written: Checkpoint) -> None:
    delete_set(store, written)
    delete_set(store, written)
    assert not list(store.keys(checkpoints_prefix(job.tenant, job.job_id)))


def test_set_whose_deletion_was_cut_is_no_checkpoint(store: ObjectStore, job: Job, written: Checkpoint) -> None:
    with pytest.raises(KeyboardInterrupt):
        delete_set(DyingStore(store), written)
    with pytest.raises(CheckpointDamaged, match=r"manifest.json is missing"):
        read_set(store, written, job, FINGERPRINTS)


def test_store_that_is_away_is_no_damage(job: Job, written: Checkpoint) -> None:
    away = ObjectStore(StoreSettings(endpoint="127.0.0.1:9", secret_key=SecretStr("s")))
    with pytest.raises(Unavailable):
        read_set(away, written, job, FINGERPRINTS)
