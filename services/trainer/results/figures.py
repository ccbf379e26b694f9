"""The numbers at the head of the report, and what the time went into."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from services.trainer.jobs import Job, JobState
from services.trainer.results.history import History

FIRST_AND_LAST = 20  # steps of which the training loss is told where nothing else was measured


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number of the run and what it is."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Start:
    """What there was before the first step."""

    short: str
    full: str


BASE = Start(short="base", full="the base model")
WARM = Start(short="start", full="the file it began with")


def figures_of(job: Job, history: History) -> tuple[Figure, ...]:
    """The result in numbers, of which the first was measured if anything was."""
    steps = history.steps
    done = int(steps[-1]) if len(steps) else 0
    held_out = _held_out_figures(job, history)
    found = [*held_out] if history.best_step is not None else _training_figures(history)
    of_all = f"of {history.total_steps:,}" if history.total_steps > done else ""
    if stopped_early(job, history):
        of_all += ", stopped early"
    found.append(Figure(label="steps", value=f"{done:,}", note=of_all))
    if skipped := int(history.skipped.sum()):
        found.append(Figure(label="skipped steps", value=f"{skipped:,}", note="loss or gradient not finite"))
    if done:
        found.append(Figure(label="a step", value=duration_text(float(np.median(history.durations_s))), note="median"))
    if history.memory_peak_bytes:
        found.append(Figure(label="memory at the peak", value=size_text(history.memory_peak_bytes)))
    return (*found, *(held_out if history.best_step is None else ()))


def _training_figures(history: History) -> list[Figure]:
    """The loss of the first and the last steps; of a run that is too short for both, of all of them."""
    losses = history.losses[np.isfinite(history.losses)]
    count = min(FIRST_AND_LAST, len(losses) // 2)
    if not len(losses):
        return []
    if not count:
        return [Figure(label="training loss", value=f"{losses[0]:.4g}", note="of one step")]
    value = f"{losses[:count].mean():.4g} → {losses[-count:].mean():.4g}"
    steps = f"mean of the first and the last {count} steps" if count > 1 else "of the first and the last step"
    return [Figure(label="training loss", value=value, note=steps)]


def _held_out_figures(job: Job, history: History) -> tuple[Figure, ...]:
    held_out = {step: loss for step, loss in history.held_out.items() if math.isfinite(loss)}
    best = history.best_step
    if best is None:
        there_is_data = job.held_out or job.config.held_out_share
        return (Figure(label="held-out loss", value="not measured", note="" if there_is_data else "no held-out data"),)
    return tuple(_best_and_last(held_out, best, start_of(job), history.held_out_zero))


def _best_and_last(held_out: dict[int, float], best: int, start: Start, zero: float | None) -> Iterator[Figure]:
    """The best step first, then the last where it is another, then what predicting nothing would cost."""
    last = max(held_out)
    value, note = f"{held_out[best]:.4g}", f"step {best:,}"
    if not best:
        note = f"{start.full}: training made it worse" if last else start.full
    elif 0 in held_out:
        value = f"{held_out[0]:.4g} → {value}"
        note = f"{start.short} → step {best:,}: {_change(held_out[0], held_out[best])}"
    yield Figure(label="held-out loss, best step", value=value, note=note)
    if last != best:
        note = f"step {last:,}" + (
            f": {_change(held_out[0], held_out[last])} than {start.short}" if 0 in held_out else ""
        )
        yield Figure(label="held-out loss, last step", value=f"{held_out[last]:.4g}", note=note)
    if zero is not None:
        share = f"the best is {held_out[best] / zero:.0%} of it" if zero else ""
        yield Figure(label="held-out loss of predicting nothing", value=f"{zero:.4g}", note=share)


def _change(before: float, after: float) -> str:
    change = after / before - 1 if before else 0.0
    return f"{abs(change):.0%} {'lower' if change < 0 else 'higher'}"


def start_of(job: Job) -> Start:
    """What the job began with."""
    return WARM if job.config.warm_start_uri else BASE


def stopped_early(job: Job, history: History) -> bool:
    """Whether the run succeeded before its last step."""
    return job.state is JobState.SUCCEEDED and len(history.steps) > 0 and int(history.steps[-1]) < history.total_steps


def times_of(job: Job, history: History) -> tuple[Figure, ...]:
    """What the time went into, the longest first. The history is of one attempt, the start that of the first."""
    begun = bool(len(history.steps))
    seconds = {"training": float(history.durations_s.sum())} if begun else {}
    seconds |= {activity.value: spent for activity, spent in history.seconds.items()}
    rest = "anything else" if begun else "anything else before the first step" if seconds else "before the first step"
    if job.epoch > 1:
        rest = "earlier attempts and anything else"
    if whole_s := span_s(job):
        seconds[rest] = max(0.0, whole_s - sum(seconds.values()))
    whole = sum(seconds.values()) or 1.0
    ordered = sorted(seconds.items(), key=lambda item: -item[1])
    return tuple(
        Figure(label=label, value=duration_text(spent), note=f"{spent / whole:.0%}") for label, spent in ordered
    )


def span_s(job: Job) -> float | None:
    """Seconds from when a worker first took the job to its end."""
    if job.start_time_s is None or job.end_time_s is None:
        return None
    return max(0.0, job.end_time_s - job.start_time_s)


def duration_text(seconds: float) -> str:
    """A time as people read it."""
    if seconds >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
    if seconds >= 60:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{seconds:.3g} s" if seconds >= 0.01 else f"{seconds * 1000:.0f} ms"


def size_text(count: float) -> str:
    """A number of bytes as people read it."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
