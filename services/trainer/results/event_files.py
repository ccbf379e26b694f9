"""The run as a TensorBoard event file, grown in memory and put into the store again and again while the job runs."""

from __future__ import annotations

import io
import time
from collections.abc import Iterable

from tensorboard.compat.proto.event_pb2 import Event as TensorBoardEvent
from tensorboard.compat.proto.event_pb2 import SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import text as text_summary

from services.trainer.config import TrainConfig
from services.trainer.jobs import (
    Event,
    Job,
    JobWarning,
    PreviewRendered,
    StepMetrics,
    StepsCompleted,
    ValidationCompleted,
)
from services.trainer.results.history import MOST_PREVIEW_STEPS, Picture, small_picture

MOST_POINTS = 10_000  # of a curve; TensorBoard draws 1,000, and metrics.csv has them all


class EventFile:
    """Takes the events of a run as they come. `SummaryWriter` would need a folder and name its file after the host."""

    def __init__(self, job: Job) -> None:
        self.name = f"events.out.tfevents.{job.job_id}"
        self._config = job.config
        self._prompts = dict(enumerate(job.config.preview_prompts))
        self._total_steps = job.total_steps
        self._last_step = 0
        self._buffer = io.BytesIO()
        self._records = RecordWriter(self._buffer)
        self._warnings: list[JobWarning] = []
        self._write(TensorBoardEvent(wall_time=job.create_time_s, file_version="brain.Event:2"))
        self._write_text("config", _settings(job.config), job.create_time_s)
        if self._prompts:
            self._write_prompts(job.create_time_s)

    def add(self, event: Event, *, time_s: float | None = None, png: bytes | None = None) -> None:
        """Note an event; `time_s` is when it was (seconds since 1970), now unless given; `png` a preview's picture."""
        at_s = time.time() if time_s is None else time_s
        if isinstance(event, StepsCompleted):
            self._total_steps = event.total_steps
            self._add_steps(event.steps, at_s)
        elif isinstance(event, ValidationCompleted):
            self._write_summary(_of_validation(event), event.step, at_s)
        elif isinstance(event, JobWarning) and event not in self._warnings:  # a job that goes on says some again
            self._warnings.append(event)
            self._write_text("warnings", [f"{found.reason}: {found.message}" for found in self._warnings], at_s)
        elif isinstance(event, PreviewRendered):
            self._add_preview(event, at_s, png)

    def content(self) -> tuple[str, bytes]:
        """File name and bytes of everything so far; the name stays the same, the bytes only grow."""
        self._records.flush()
        return self.name, self._buffer.getvalue()

    def _add_preview(self, event: PreviewRendered, at_s: float, png: bytes | None) -> None:
        number = event.prompt_number
        if self._prompts.get(number) != event.prompt:  # it was given without the dataset's trigger word
            self._prompts[number] = event.prompt
            self._write_prompts(at_s)
        if png is not None and self._shows(event.step):
            self._write_summary(_image(f"previews/{number}", small_picture(png)), event.step, at_s)

    def _write_prompts(self, time_s: float) -> None:
        self._write_text("preview_prompts", [f"{number}: {prompt}" for number, prompt in self._prompts.items()], time_s)

    def _add_steps(self, steps: tuple[StepMetrics, ...], end_s: float) -> None:
        stride = -(-self._total_steps // MOST_POINTS)
        if steps and steps[0].step <= self._last_step:  # resumed: TensorBoard then forgets what it had from there on
            restart = SessionLog(status=SessionLog.START)
            self._write(TensorBoardEvent(wall_time=end_s, step=steps[0].step, session_log=restart))
        at_s = end_s - sum(step.duration_s for step in steps)
        for step in steps:
            at_s += step.duration_s
            if stride <= 1 or step.step % stride == 0 or step.skipped or step.step in {1, self._total_steps}:
                self._write_summary(_of_step(step), step.step, at_s)
            self._last_step = step.step

    def _shows(self, step: int) -> bool:
        interval = self._config.preview_interval(self._total_steps)
        stride = -(-self._total_steps // (interval * MOST_PREVIEW_STEPS))
        return stride <= 1 or step == self._total_steps or step % (interval * stride) == 0

    def _write_text(self, tag: str, lines: Iterable[str], at_s: float) -> None:
        # Indented, so that Markdown shows it as it is.
        shown = "\n".join(f"    {line}" for text in lines for line in text.splitlines() or [""])
        self._write_summary(text_summary(tag, shown), 0, at_s)

    def _write_summary(self, summary: Summary, step: int, at_s: float) -> None:
        self._write(TensorBoardEvent(wall_time=at_s, step=step, summary=summary))

    def _write(self, event: TensorBoardEvent) -> None:
        self._records.write(event.SerializeToString())


def _of_step(step: StepMetrics) -> Summary:
    return _scalars(
        {
            "train/loss": step.loss,
            "train/learning_rate": step.learning_rate,
            "train/gradient_norm": step.gradient_norm,
            "train/step_time_s": step.duration_s,
        }
    )


def _of_validation(event: ValidationCompleted) -> Summary:
    losses = {"held_out/loss": event.loss}
    if event.held_out_loss_zero is not None:  # a level line beside the curve
        losses["held_out/loss_zero"] = event.held_out_loss_zero
    return _scalars(losses)


def _scalars(values: dict[str, float]) -> Summary:
    return Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])


def _image(tag: str, picture: Picture) -> Summary:
    image = Summary.Image(
        height=picture.height_px, width=picture.width_px, colorspace=3, encoded_image_string=picture.data
    )
    return Summary(value=[Summary.Value(tag=tag, image=image)])


def _settings(config: TrainConfig) -> list[str]:
    return [f"{name}: {value}" for name, value in config.model_dump(mode="json").items()]
