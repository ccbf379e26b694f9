"""The states that a job can go on from."""

from dataclasses import dataclass
from datetime import datetime

from fluxsmith.artifacts import Artifact

CHECKPOINTS = "checkpoints/"
"""With what the names of their LoRAs begin among those of a job's files."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A state from which a job can go on, whatever happens to its worker."""

    id: str
    """Identifier within the job."""
    step: int
    """Steps done."""
    create_time: datetime | None = None
    """When it was written."""
    uri: str
    """Address of its manifest, `s3://bucket/key`."""
    size_bytes: int
    """Size of all its files."""
    lora: Artifact
    """The LoRA as it was after that step, which loads like the finished one: `job.download` fetches it by its
    `artifact_name`, and its `uri` can be the `warm_start_uri` of another job."""
    held_out_loss: float | None = None
    """Loss on the held-out data, where it was measured after that very step."""
