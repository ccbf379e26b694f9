"""What happens to a training job, as told by `job.watch()`. Each event prints as one readable line."""

import math
import textwrap
from dataclasses import dataclass
from datetime import datetime

from fluxsmith.artifacts import Artifact
from fluxsmith.checkpoints import Checkpoint
from fluxsmith.training import JobState

_PROMPT_WIDTH = 60


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
    skipped: bool = False
    """Whether it was skipped because its loss or gradient, which are then not finite numbers, was not finite."""

    @property
    def counts(self) -> bool:
        """Whether its loss can be part of a mean."""
        return not self.skipped and math.isfinite(self.loss)


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
        losses = [step.loss for step in self.steps if step.counts]
        skipped = sum(step.skipped for step in self.steps)
        mean = f"loss {sum(losses) / len(losses):.4f}" if losses else "no finite loss"
        facts = [f"{mean} (mean of {len(losses)} steps)" if len(losses) > 1 else mean]
        facts += [f"{skipped} skipped"] if skipped else []
        return f"step {self.steps[-1].step} of {self.total_steps}: {', '.join(facts)}"


@dataclass(frozen=True, kw_only=True)
class ValidationCompleted(Event):
    """The loss on the held-out dataset was measured."""

    step: int
    """After this step; 0 is before the first: the base, or the LoRA that the job began with."""
    loss: float
    """Mean over the held-out samples at fixed noise levels and noise."""
    held_out_loss_zero: float | None = None
    """What predicting no velocity would cost on the same: one number for the whole job. None if not told."""

    def __str__(self) -> str:
        zero = self.held_out_loss_zero
        yardstick = "" if zero is None else f" (predicting nothing {zero:.4f})"
        return f"held-out loss {self.loss:.4f} {_moment(self.step)}{yardstick}"


@dataclass(frozen=True, kw_only=True)
class ArtifactPublished(Event, Artifact):
    """A file was published."""

    def __str__(self) -> str:
        return f"published {self.artifact_name} at {self.uri} ({self.size_bytes} bytes)"


@dataclass(frozen=True, kw_only=True)
class PreviewRendered(Event):
    """A picture was made with what has been learnt so far."""

    step: int
    """After this step; 0 is before the first: the base, or the LoRA that the job began with."""
    prompt: str
    """Its prompt, with the dataset's trigger word."""
    seed: int
    """Seed of its noise."""
    image: Artifact
    """The picture, PNG; `job.download` fetches it by its `artifact_name`."""

    def __str__(self) -> str:
        # A prompt may be long and have several lines.
        prompt = textwrap.shorten(self.prompt, _PROMPT_WIDTH, placeholder="...")
        return f"preview {_moment(self.step)}: {self.image.artifact_name} ({prompt or 'empty prompt'})"


@dataclass(frozen=True, kw_only=True)
class CheckpointWritten(Event):
    """A checkpoint is durable: whatever happens, the job goes on from this one or a later one."""

    checkpoint: Checkpoint

    def __str__(self) -> str:
        return f"checkpoint {_moment(self.checkpoint.step)}"


@dataclass(frozen=True, kw_only=True)
class JobWarning(Event):
    """Something worth knowing that stops nothing."""

    reason: str
    """Stable, for programs, such as `SHORT_RUN`."""
    message: str

    def __str__(self) -> str:
        return f"warning: {self.message}"


def _moment(step: int) -> str:
    return f"after step {step}" if step else "before the first step"
