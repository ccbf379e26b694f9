"""What happens to a training job, as told by `job.watch()`. Each event prints as one readable line."""

from dataclasses import dataclass
from datetime import datetime

from fluxsmith.training import JobState


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to a job."""

    sequence: int
    """Counts from 1 without a gap within a job."""
    time: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class StateChanged(Event):
    """The job moved on."""

    state: JobState
    message: str = ""
    """Why, for people; may be empty."""

    def __str__(self) -> str:
        return f"{self.state.lower()}: {self.message}" if self.message else self.state.lower()


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """What one step measured."""

    step: int
    """Counts from 1."""
    loss: float
    """Loss of the step's batch."""
    learning_rate: float
    gradient_norm: float
    """Before clipping."""
    duration_s: float
    """Time since the step before ended."""


@dataclass(frozen=True, kw_only=True)
class StepsCompleted(Event):
    """Steps were done since the last such event."""

    steps: tuple[StepMetrics, ...]
    """In order, at least one."""
    total_steps: int
    """Steps in all."""

    def __str__(self) -> str:
        if not self.steps:
            return f"no step of {self.total_steps}"
        mean_loss = sum(step.loss for step in self.steps) / len(self.steps)
        return f"step {self.steps[-1].step} of {self.total_steps}: loss {mean_loss:.4f}"


@dataclass(frozen=True, kw_only=True)
class ValidationCompleted(Event):
    """The loss on the held-out dataset was measured."""

    step: int
    """After this step; 0 is the base."""
    loss: float
    """Mean over the held-out samples at fixed noise levels and noise."""

    def __str__(self) -> str:
        return f"held-out loss {self.loss:.4f} {f'after step {self.step}' if self.step else 'of the base'}"


@dataclass(frozen=True, kw_only=True)
class ArtifactPublished(Event):
    """A file was published."""

    artifact_name: str
    """Name within the job, such as `lora.safetensors`."""
    uri: str
    """`s3://bucket/key`."""
    size_bytes: int
    content_digest: str
    """sha256 of the file as hexadecimal."""

    def __str__(self) -> str:
        return f"published {self.artifact_name} at {self.uri} ({self.size_bytes} bytes)"


@dataclass(frozen=True, kw_only=True)
class JobWarning(Event):
    """Something worth knowing that stops nothing."""

    reason: str
    """Stable, for programs, such as `SHORT_RUN`."""
    message: str

    def __str__(self) -> str:
        return f"warning: {self.message}"
