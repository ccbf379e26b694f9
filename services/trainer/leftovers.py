"""What of an ended job's files nobody names any more: parts of lost attempts, removed checkpoints."""

from __future__ import annotations

from collections.abc import Iterable

from services.common.object_store import ObjectStore
from services.trainer.jobs import Artifact, Checkpoint, Job
from services.trainer.results.job_files import job_prefix


def remove_leftovers(
    store: ObjectStore, job: Job, artifacts: Iterable[Artifact], checkpoints: Iterable[Checkpoint]
) -> int:
    """Delete everything of an ended job but its published files and the checkpoints it keeps; return how many objects.

    Only for who has just ended it: nobody else may write then.
    """
    named = {store.key_of(artifact.uri) for artifact in artifacts}
    kept = tuple((store.key_of(checkpoint.uri) or "").rpartition("/")[0] + "/" for checkpoint in checkpoints)
    found = list(store.keys(job_prefix(job.tenant, job.job_id)))
    unnamed = [key for key in found if key not in named and not key.startswith(kept)]
    for key in unnamed:
        store.delete(key)
    return len(unnamed)
