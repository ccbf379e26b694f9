"""A training job and what happens to it, as every part of the trainer sees them. Names are those of the contract."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_serializer

from services.trainer.config import TrainConfig


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    PAUSING = "PAUSING"
    PAUSED = "PAUSED"
    CANCELLING = "CANCELLING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self in {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}


class Fault(StrEnum):
    """Whose fault a failure was."""

    USER = "USER"
    SYSTEM = "SYSTEM"
    RESOURCE = "RESOURCE"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class JobFailure(_Record):
    """Why a job failed, and what to do about it."""

    fault: Fault
    reason: str
    message: str
    remedy: str


class Artifact(_Record):
    """A published file of a job."""

    artifact_name: str
    uri: str
    size_bytes: int
    content_digest: str


class TrainingResult(_Record):
    """What a job made. `step_time_s` is the median; `artifacts` has the newest file of each name, the LoRA included."""

    lora: Artifact
    artifacts: tuple[Artifact, ...] = ()
    held_out_loss_base: float | None
    held_out_loss_lora: float | None
    best_step: int | None = None
    held_out_loss_best: float | None = None
    held_out_loss_zero: float | None = None
    best_artifact_name: str = ""
    stopped_early: bool = False
    skipped_steps: int = 0
    step_time_s: float
    memory_peak_bytes: int = 0


class StepMetrics(_Record):
    """What one step measured. `duration_s` is the time since the step before ended.

    A `skipped` step changed nothing, since its loss or gradient was not finite.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    duration_s: float
    skipped: bool = False

    @field_serializer("loss", "gradient_norm", when_used="json")
    def _as_json(self, value: float) -> float | str:
        return value if math.isfinite(value) else str(value)  # JSON has no such numbers


class StateChanged(_Record):
    """The job moved on."""

    kind: Literal["state_changed"] = "state_changed"
    state: JobState
    message: str = ""


class StepsCompleted(_Record):
    """Steps were done since the last such event."""

    kind: Literal["steps_completed"] = "steps_completed"
    steps: tuple[StepMetrics, ...]
    total_steps: int


class ValidationCompleted(_Record):
    """The loss on the held-out dataset was measured after `step`; 0 is before the first step.

    `held_out_loss_zero` is that of predicting no velocity; jobs of earlier versions have none.
    """

    kind: Literal["validation_completed"] = "validation_completed"
    step: int
    loss: float
    held_out_loss_zero: float | None = None


class ArtifactPublished(_Record):
    """A file was published."""

    kind: Literal["artifact_published"] = "artifact_published"
    artifact: Artifact


class Checkpoint(_Record):
    """A state that a job can go on from: the address of its manifest, that one's digest, and the LoRA as it was then.

    `size_bytes` is that of all its files; `held_out_loss` is there where it was measured after that very step. A
    `requested` one answers CreateCheckpoint.
    """

    checkpoint_id: str
    step: int
    uri: str
    manifest_digest: str
    size_bytes: int
    lora: Artifact
    held_out_loss: float | None = None
    requested: bool = False


class StoredCheckpoint(Checkpoint):
    """A checkpoint that the database knows, with the time of its writing (seconds since 1970)."""

    create_time_s: float


class CheckpointWritten(_Record):
    """A checkpoint is durable."""

    kind: Literal["checkpoint_written"] = "checkpoint_written"
    checkpoint: Checkpoint


class PreviewRendered(_Record):
    """A picture was made after `step` with what has been learnt so far; 0 is before the first step."""

    kind: Literal["preview_rendered"] = "preview_rendered"
    step: int
    prompt: str
    seed: int
    image: Artifact

    @property
    def prompt_number(self) -> int:
        """Place of its prompt among those of the job, from 0, as in the name of its picture."""
        return int(self.image.artifact_name.removesuffix(".png").rpartition("-")[2])


class JobWarning(_Record):
    """Something worth knowing that stops nothing."""

    kind: Literal["warning"] = "warning"
    reason: str
    message: str


Event = Annotated[
    StateChanged
    | StepsCompleted
    | ValidationCompleted
    | ArtifactPublished
    | PreviewRendered
    | CheckpointWritten
    | JobWarning,
    Field(discriminator="kind"),
]


class StoredEvent(_Record):
    """An event with its place in the job's sequence (from 1, gapless) and its time (seconds since 1970)."""

    sequence: int
    time_s: float
    event: Event


class DatasetReference(_Record):
    """A dataset as it was when the job was created: its manifest, or the encoding that was to give one."""

    dataset_id: str
    manifest_digest: str = ""
    encoding_id: str = ""

    @property
    def held_by(self) -> str:
        """What must not be collected while the job needs it."""
        return self.encoding_id or self.manifest_digest


class NewJob(_Record):
    """What a caller asks for, checked."""

    user_id: str = ""
    display_name: str = ""
    dataset: DatasetReference
    held_out: DatasetReference | None = None
    config: TrainConfig
    start_while_encoding: bool = False
    priority: int = Field(default=0, ge=-100, le=100)

    def references(self) -> tuple[DatasetReference, ...]:
        """The datasets it reads."""
        return (self.dataset, self.held_out) if self.held_out else (self.dataset,)


class Job(NewJob):
    """A job as stored. Times are seconds since 1970; `epoch` counts how often it was claimed.

    `lost` counts the attempts that were lost or failed since it last wrote a checkpoint; `progress_time_s` is when its
    worker last got on with it; `step_time_s` is what its steps take lately, other jobs' turns included.
    `discard_checkpoints` was asked for when it was cancelled.
    """

    job_id: str
    tenant: str
    state: JobState
    create_time_s: float
    start_time_s: float | None
    end_time_s: float | None
    step: int
    total_steps: int
    attempt: int
    epoch: int
    failure: JobFailure | None
    result: TrainingResult | None
    first_sequence: int = 1
    last_sequence: int
    lost: int = 0
    checkpoint_step: int = 0
    discard_checkpoints: bool = False
    progress_time_s: float | None = None
    step_time_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a worker says of a job with every sign of life.

    `served_s` is for how many seconds the job has had the base since the sign before; `idle_s` for how long it has not
    got on; `step_time_s` what a step takes lately, other jobs' turns included, None before the first.
    """

    step: int
    total_steps: int
    served_s: float = 0.0
    idle_s: float = 0.0
    step_time_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What is wanted of a job by those who may: the state it should move on to, and whether a checkpoint is wanted."""

    state: JobState
    checkpoint: bool = False
