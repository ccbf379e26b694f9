"""What an ended job's worker removes: everything that nobody names any more, and nothing else."""

from __future__ import annotations

from services.common.object_store import ObjectStore
from services.trainer.config import TrainConfig
from services.trainer.jobs import Artifact, Checkpoint
from services.trainer.leftovers import remove_leftovers
from services.trainer.results.job_files import checkpoints_prefix, job_prefix
from tests.services.trainer.checkpoints.runs import job_of


def put(store: ObjectStore, key: str) -> str:
    """An object; its address."""
    return store.uri(store.put(key, key.encode()).key)


def artifact(uri: str) -> Artifact:
    return Artifact(artifact_name="lora.safetensors", uri=uri, size_bytes=1, content_digest="0")


def checkpoint(store: ObjectStore, tenant: str, checkpoint_id: str) -> Checkpoint:
    """One whose manifest and parts are in the store."""
    folder = f"{checkpoints_prefix(tenant, 'job-1')}{checkpoint_id}/"
    lora, uri = put(store, f"{folder}lora.safetensors"), put(store, f"{folder}manifest.json")
    step = int(checkpoint_id.partition("-")[0])
    return Checkpoint(
        checkpoint_id=checkpoint_id, step=step, uri=uri, manifest_digest="0", size_bytes=1, lora=artifact(lora)
    )


def test_named_files_and_kept_checkpoints_stay_and_everything_else_goes(store: ObjectStore, tenant: str) -> None:
    prefix, job = job_prefix(tenant, "job-1"), job_of(TrainConfig(rank=2), tenant, epoch=3)
    lora = put(store, f"{prefix}3/lora.safetensors")
    of_lost_epoch = put(store, f"{prefix}1/previews/000000-0.png")
    put(store, f"{prefix}2/lora.safetensors")
    put(store, f"{prefix}3/previews/000000-0")
    kept = checkpoint(store, tenant, "000010-1")
    checkpoint(store, tenant, "000010-11")  # its name begins as that of the one that is kept
    checkpoint(store, tenant, "000020-2")
    left = {*store.keys(f"{checkpoints_prefix(tenant, 'job-1')}000010-1/"), f"{prefix}3/lora.safetensors"}
    assert remove_leftovers(store, job, [artifact(lora), artifact(of_lost_epoch)], [kept]) == 6
    assert set(store.keys(prefix)) == left | {f"{prefix}1/previews/000000-0.png"}


def test_other_jobs_lose_nothing(store: ObjectStore, tenant: str) -> None:
    other = f"{job_prefix(tenant, 'job-10')}1/lora.safetensors"
    put(store, other)
    put(store, f"{job_prefix(tenant, 'job-1')}1/lora.safetensors")
    assert remove_leftovers(store, job_of(TrainConfig(rank=2), tenant), [], []) == 1
    assert list(store.keys(f"{tenant}/jobs/")) == [other]
