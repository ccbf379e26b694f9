"""What a training job computes, where it stands, and what it made."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class SigmaSampling(StrEnum):
    """How noise levels sigma in (0, 1] are drawn; 1 is pure noise."""

    UNIFORM = "UNIFORM"
    """Each level alike."""
    LOGIT_NORMAL = "LOGIT_NORMAL"
    """sigmoid of a standard normal: middle levels more often."""
    RESOLUTION_SHIFT = "RESOLUTION_SHIFT"
    """LOGIT_NORMAL shifted towards noise with the number of image tokens, as FLUX samples."""


class TargetPreset(StrEnum):
    """Which layers of the transformer are adapted."""

    IMAGE_STREAM = "IMAGE_STREAM"
    """Attention and feed-forward of the image stream and the single-stream blocks."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides what a job computes. None means the trainer's default, which is named with each field."""

    rank: int | None = None
    """Rank of the LoRA matrices. 1 to 512; default 16."""
    alpha: float | None = None
    """The adapter's output is scaled by alpha / rank. Over 0, at most 4096; default 16."""
    learning_rate: float | None = None
    """Peak learning rate of AdamW. Over 0, at most 0.1; default 1e-4."""
    batch_size: int | None = None
    """Samples a step, drawn from one bucket. 1 to 64; default 1."""
    steps: int | None = None
    """Length of the run in optimizer steps. 1 to 100,000; excludes `epochs`."""
    epochs: int | None = None
    """Length of the run as times that every sample is seen. 1 to 10,000; default 1, unless `steps` is set."""
    seed: int | None = None
    """The same seed on the same data gives the same steps. 0 to 2^32 - 1; default 0."""
    sigma_sampling: SigmaSampling | None = None
    """How noise levels are drawn; default LOGIT_NORMAL."""
    targets: TargetPreset | None = None
    """Which layers are adapted; default IMAGE_STREAM."""
    warmup_steps: int | None = None
    """Steps of linear warm-up of the learning rate. 0 to 10,000; default 0."""
    max_gradient_norm: float | None = None
    """Largest norm of the gradient; larger ones are scaled down. Over 0; default 1."""
    caption_dropout: float | None = None
    """Share of samples trained with the empty caption. 0 to 1; default 0."""
    gradient_checkpointing: bool | None = None
    """Recompute activations in the backward pass: less memory, about a third more time. Default yes."""
    validation_interval_steps: int | None = None
    """Steps between measurements of the held-out loss. 1 to 100,000; default 10 measurements a run."""


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
    UNKNOWN = "UNKNOWN"
    """A state that this version of the library does not know."""

    @property
    def ended(self) -> bool:
        """Whether a job in this state stays in it for good."""
        return self in {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}


class Fault(StrEnum):
    """Whose fault the failure of a job was."""

    USER = "USER"
    """The request's: repeating it would fail again."""
    SYSTEM = "SYSTEM"
    """The service's: it was tried again and kept failing."""
    RESOURCE = "RESOURCE"
    """It needs more memory than there is."""
    UNKNOWN = "UNKNOWN"
    """Not told, or told in a way that this version of the library does not know."""


@dataclass(frozen=True, kw_only=True)
class JobFailure:
    """Why a job failed."""

    fault: Fault = Fault.UNKNOWN
    reason: str = ""
    """Stable, for programs, such as `NON_FINITE_LOSS`."""
    message: str
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a job made."""

    lora_uri: str
    """`s3://bucket/key` of a safetensors file with PEFT keys, as `FluxPipeline.load_lora_weights` reads it."""
    lora_bytes: int
    lora_digest: str
    """sha256 of the file as hexadecimal."""
    held_out_loss_base: float | None = None
    """Loss of the base on the held-out dataset, at fixed noise; None without one."""
    held_out_loss_lora: float | None = None
    """The same with the finished adapter."""
    step_time_s: float | None = None
    """Median time of a step."""


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """A training job as it was when asked for."""

    id: str
    user_id: str = ""
    """User of the product that asked for the job, as given."""
    name: str = ""
    """For people."""
    state: JobState
    config: TrainConfig
    """What it computes, with every default filled in."""
    dataset_id: str
    held_out_dataset_id: str = ""
    """Empty means none."""
    create_time: datetime | None = None
    start_time: datetime | None = None
    """When a worker first took it up."""
    end_time: datetime | None = None
    step: int = 0
    """Optimizer steps done."""
    total_steps: int = 0
    """Optimizer steps in all, known once it runs."""
    attempt: int = 0
    """Times a worker has taken it up; more than 1 after a worker was lost."""
    failure: JobFailure | None = None
    """Set only when FAILED."""
    result: TrainingResult | None = None
    """Set only when SUCCEEDED."""
    last_sequence: int = 0
    """Sequence of its newest event."""
    queue_position: int = 0
    """Jobs ahead of it; meaningful only while QUEUED."""
    start_while_encoding: bool = False
    """Whether it may begin before its dataset is encoded."""
