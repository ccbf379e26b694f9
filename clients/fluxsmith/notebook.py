"""How `job.show()` looks in a notebook: figures, losses and previews that move on while the job runs.

It needs IPython, which every notebook has.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from IPython.display import DisplayHandle, display

from fluxsmith import _html
from fluxsmith._best import better_file, file_facts
from fluxsmith._curve import loss_curve
from fluxsmith._smoothing import recent_loss_text
from fluxsmith.events import Event, JobWarning, PreviewRendered, StepsCompleted, ValidationCompleted
from fluxsmith.training import JobState, TrainingJob

_REDRAW_S = 1.0
_MOST_NOTES = 3


class JobView:
    """Takes a job's events and, when asked to, draws what they tell below the cell, in place of the last drawing."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._drawn_s = float("-inf")
        self._losses: dict[int, float] = {}
        self._held_out: dict[int, float] = {}
        self._zero: float | None = None
        self._warnings: list[str] = []
        self._previews: dict[tuple[str, int], PreviewRendered] = {}
        self._pictures: dict[int, bytes] = {}
        self._state, self._strip = _Place(), _Place()

    def take(self, event: Event) -> None:
        """Remember what the event tells."""
        match event:
            case StepsCompleted():
                self._take_steps(event)
            case ValidationCompleted():
                self._held_out[event.step] = event.loss
                self._zero = event.held_out_loss_zero
            case PreviewRendered():
                self._previews[event.prompt, event.seed] = event
            case JobWarning():
                self._warnings.append(str(event))

    def is_due(self) -> bool:
        """Whether the last drawing is old enough for another one."""
        return self._clock() - self._drawn_s >= _REDRAW_S

    def missing_pictures(self) -> list[PreviewRendered]:
        """Return the newest preview of each prompt whose picture is not there yet."""
        return [event for event in self._previews.values() if event.sequence not in self._pictures]

    def put_picture(self, event: PreviewRendered, data: bytes) -> None:
        """Take the picture of a preview, a PNG file."""
        self._pictures[event.sequence] = data

    def draw(self, job: TrainingJob) -> None:
        """Show the job as it is now."""
        self._drawn_s = self._clock()
        self._state.show(self._progress(job), f"{_title(job)}: {', '.join(_facts(job))}")
        newest = [event for event in self._previews.values() if event.sequence in self._pictures]
        if newest:
            shown = [(self._pictures[event.sequence], f"step {event.step}: {event.prompt}") for event in newest]
            self._strip.show(_html.pictures(shown), f"{len(shown)} previews")

    def _take_steps(self, event: StepsCompleted) -> None:
        for step in event.steps:
            # They come again when a lost worker's job goes on from a checkpoint.
            while self._losses and next(reversed(self._losses)) >= step.step:
                self._losses.popitem()
            if step.counts:
                self._losses[step.step] = step.loss

    def _progress(self, job: TrainingJob) -> str:
        facts = _facts(job)
        if self._losses:
            facts.append(recent_loss_text(list(self._losses.values())))
        if self._held_out:
            facts.append(f"held-out loss {self._held_out[max(self._held_out)]:.4f}")
        notes = self._warnings[-_MOST_NOTES:]
        if job.held_out_line:
            notes = [*notes, f"held-out loss: {job.held_out_line}"]
        if better_file(job):
            notes = [*notes, *(f"{name}: {address}" for name, address in file_facts(job).items())]
        if job.failure:
            notes = [*notes, f"failed: {job.failure.message} {job.failure.remedy}"]
        last_step = max(job.total_steps, *self._losses, *self._held_out, 1)
        curve = loss_curve(self._losses, self._held_out, last_step=last_step, zero=self._zero)
        return _html.progress(_title(job), facts, job.step / max(job.total_steps, 1), notes, curve)


@dataclass(frozen=True, kw_only=True)
class _Drawing:
    html: str
    text: str
    """Shown where there is no page: each drawing is a line then."""

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return self.html


class _Place:
    """One output of the cell, made by what is shown first and replaced by what differs from it."""

    def __init__(self) -> None:
        self._handle: DisplayHandle | None = None
        self._drawn: _Drawing | None = None

    def show(self, html: str, text: str) -> None:
        """Show it, unless it is what is shown already."""
        drawing = _Drawing(html=html, text=text)
        if drawing == self._drawn:
            return
        self._drawn = drawing
        if self._handle is None:
            self._handle = display(drawing, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(drawing)  # type: ignore[no-untyped-call]


def _title(job: TrainingJob) -> str:
    return job.name or job.id


def _facts(job: TrainingJob) -> list[str]:
    facts = [job.state.lower()]
    if job.state is JobState.QUEUED and job.queue_position:
        facts.append(f"{job.queue_position} ahead")
    if job.total_steps:
        facts.append(f"step {job.step} of {job.total_steps}")
    if job.time_left_s is not None:
        facts.append(f"{timedelta(seconds=round(job.time_left_s))} left")
    return facts
