"""Progress on standard error: bars on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol, Self

import typer
from fluxsmith_text import on_one_line
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID
from rich.style import Style
from rich.text import Text

from fluxsmith.cli.bar import RowColumn
from fluxsmith.cli.config_options import with_options
from fluxsmith.cli.meter import TrainingMeter
from fluxsmith.cli.text import event_json, progress_facts, queue_text
from fluxsmith.data import DatasetProgress, OnProgress
from fluxsmith.events import (
    CheckpointWritten,
    Event,
    JobWarning,
    PreviewRendered,
    StateChanged,
    StepsCompleted,
    ValidationCompleted,
)
from fluxsmith.training import JobState, TrainingJob

_LINE_INTERVAL_S = 5.0
_STANDING = {JobState.QUEUED, JobState.PAUSING, JobState.PAUSED, JobState.CANCELLING}


class Display(Protocol):
    """Shows how a dataset and then a job move on, while it is entered as a context manager."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def close(self) -> None:
        """Leave what is shown as it stands; what is printed next comes below. Closing again changes nothing."""

    def note(self, text: str) -> None:
        """Show a line that stays."""

    def dataset(self, name: str) -> OnProgress:
        """Return what shows the progress of the dataset called `name`."""

    def event(self, event: Event, *, past: bool = False) -> None:
        """Show an event of the job; `past` says that it was there before anybody watched."""

    def preview(self, event: PreviewRendered, address: Callable[[], str]) -> None:
        """Show that a picture is there, and where: `address` asks for one that a browser opens for an hour."""

    def queued(self, ahead: int) -> None:
        """Show how many jobs go before the one that waits."""

    def heard(self, job: TrainingJob) -> None:
        """Let what is shown next have the trainer's own estimate of the time left."""


def display_for(console: Console) -> Display:
    """Return the display that suits where the console writes to."""
    return BarDisplay(console) if console.is_terminal else LineDisplay(console)


class BarDisplay:
    """Bars that move, with lines that stay above them."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(RowColumn(), console=console, expand=True)
        self._meter = TrainingMeter()
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the bars as they stand: what goes on elsewhere no longer moves here."""
        for task in self._tasks.values():
            self._progress.update(task, moves=False)
        self._progress.stop()

    def note(self, text: str) -> None:
        """Show a line that stays."""
        self._progress.console.print(escape(text))

    def dataset(self, name: str) -> OnProgress:
        """Return what shows the progress of the dataset called `name`."""

        def on_progress(progress: DatasetProgress) -> None:
            description = f"{progress.phase} {name}"
            self._show(description, progress.done_count, progress.total_count, progress_facts(progress))

        return on_progress

    def event(self, event: Event, *, past: bool = False) -> None:
        """Show an event of the job."""
        match event:
            case StepsCompleted():
                self._meter.take(event, past=past)
                self._show("train", self._meter.step, self._meter.total_steps, self._meter.facts())
            case StateChanged(state=state, message=message):
                if state.ended:
                    self._end(state)
                else:
                    facts = [] if state in _STANDING else self._meter.facts()
                    self._show("train", self._meter.step, self._meter.total_steps or None, facts or [state.lower()])
                if message:
                    self.note(str(event))
            case ValidationCompleted() | CheckpointWritten():
                self.note(str(event))
            case JobWarning():
                self.note(with_options(str(event)))

    def preview(self, event: PreviewRendered, address: Callable[[], str]) -> None:
        """Show a line that stays, which most terminals open with a click."""
        self._progress.console.print(Text(str(event), style=Style(link=on_one_line(address()) or None)))

    def queued(self, ahead: int) -> None:
        """Show how many jobs go before the one that waits."""
        self._show("train", self._meter.step, self._meter.total_steps or None, [queue_text(ahead)])

    def heard(self, job: TrainingJob) -> None:
        """Show the trainer's own estimate of the time left from now on."""
        self._meter.hear(job)

    def _end(self, state: JobState) -> None:
        """Leave a bar that stands still: full for a job that succeeded, also where it needed fewer steps."""
        self._meter.end()
        step, total = self._meter.step, self._meter.total_steps
        facts = self._meter.facts()
        if in_words := state is not JobState.SUCCEEDED or step < total:
            how = "ended early" if state is JobState.SUCCEEDED else state.lower()
            facts = [f"{how} at step {step} of {total}" if total else how, *facts]
        whole = step if state is JobState.SUCCEEDED else total
        self._show("train", step, whole or None, facts, moves=False, counted=not in_words)

    def _show(
        self,
        description: str,
        done: int,
        total: int | None,
        facts: Sequence[str],
        *,
        moves: bool = True,
        counted: bool = True,
    ) -> None:
        if description not in self._tasks:
            self._tasks[description] = self._progress.add_task(
                description, total=total, facts=facts, moves=moves, counted=counted
            )
        self._progress.update(
            self._tasks[description], completed=done, total=total, facts=facts, moves=moves, counted=counted
        )


class LineDisplay:
    """Plain lines, at most one in five seconds for what moves steadily; for logs and pipes."""

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._meter = TrainingMeter()
        self._last_line_s = float("-inf")
        self._shown_step = 0
        self._ahead: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the lines as they stand."""

    def note(self, text: str) -> None:
        """Show a line."""
        self._console.print(escape(text), soft_wrap=True)

    def dataset(self, name: str) -> OnProgress:
        """Return what shows the progress of the dataset called `name`."""

        def on_progress(progress: DatasetProgress) -> None:
            # While an encoding is told of, its last tensors are still being written, and more will be told.
            done = progress.done_count == progress.total_count and progress.encoding is None
            count = f"{progress.done_count} of {progress.total_count} samples"
            text = ", ".join([f"{progress.phase} {name}: {count}", *progress_facts(progress)])
            self._now_and_then(text, important=done)

        return on_progress

    def event(self, event: Event, *, past: bool = False) -> None:
        """Show an event of the job."""
        match event:
            case StepsCompleted():
                self._meter.take(event, past=past)
                self._show_step(important=self._meter.step == self._meter.total_steps)
            case StateChanged(state=state) if state.ended:
                self._meter.end()
                if self._meter.step != self._shown_step:
                    self._show_step(important=True)
                self.note(str(event))
            case StateChanged() | ValidationCompleted() | CheckpointWritten():
                self.note(str(event))
            case JobWarning():
                self.note(with_options(str(event)))

    def preview(self, event: PreviewRendered, address: Callable[[], str]) -> None:
        """Show a line with the place in the store: an address that opens for everyone belongs in no log."""
        del address
        self.note(f"{event} {event.image.uri}")

    def queued(self, ahead: int) -> None:
        """Show how many jobs go before the one that waits."""
        if ahead != self._ahead:
            self._ahead = ahead
            self.note(queue_text(ahead))

    def heard(self, job: TrainingJob) -> None:
        """Show the trainer's own estimate of the time left from now on."""
        self._meter.hear(job)

    def _show_step(self, *, important: bool) -> None:
        text = f"step {self._meter.step} of {self._meter.total_steps}  {self._meter}"
        if self._now_and_then(text, important=important):
            self._shown_step = self._meter.step

    def _now_and_then(self, text: str, *, important: bool) -> bool:
        """Show the line if one is due or it is important; return whether it was shown."""
        now_s = self._clock()
        due = important or now_s - self._last_line_s >= _LINE_INTERVAL_S
        if due:
            self._last_line_s = now_s
            self.note(text)
        return due


class JsonDisplay:
    """Every event as a line of JSON on standard output, and nothing else."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the lines as they stand."""

    def note(self, text: str) -> None:
        """Show nothing: events tell."""

    def dataset(self, name: str) -> OnProgress:
        """Return what shows nothing: only jobs are told so."""
        del name
        return lambda _: None

    def event(self, event: Event, *, past: bool = False) -> None:
        """Print the event."""
        del past
        typer.echo(event_json(event))

    def preview(self, event: PreviewRendered, address: Callable[[], str]) -> None:
        """Show nothing: the event itself tells."""

    def queued(self, ahead: int) -> None:
        """Show nothing."""

    def heard(self, job: TrainingJob) -> None:
        """Show nothing."""
