r"""Words for people, and JSON for programs: pure functions from values to text.

Names of files and texts of services are written by others: control characters in them come out as `\x1b`.
"""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fluxsmith_text import on_one_line

from fluxsmith._best import better_file, file_facts
from fluxsmith.checkpoints import CHECKPOINTS, Checkpoint
from fluxsmith.data import Dataset, DatasetProgress, SampleProblem, SampleProblemReason
from fluxsmith.errors import FluxsmithError
from fluxsmith.events import Event
from fluxsmith.training import Fault, JobState, TrainingJob

_MAX_PROBLEMS = 10
_MAX_NAMES = 3
_MAX_STEPS = 10
_NEWEST_KEPT = 2


def error_line(text: str) -> str:
    """Return the one line that an error becomes."""
    return f"error: {_spaced(text)}"


def error_json(error: FluxsmithError, text: str) -> str:
    """Return what went wrong for scripts: `error` is that line without the word, the rest as in Python."""
    told = {"reason": error.reason, "message": error.message, "remedy": error.remedy}
    return json.dumps({"error": _spaced(text), **told, "retry_after_s": error.retry_after_s})


def _spaced(text: str) -> str:
    return on_one_line(" ".join(re.split(r"[ \t\r\n]+", text.strip(" \t\r\n"))))


def size_text(size_bytes: int) -> str:
    """Return a size as people read it, such as `1.4 MB`."""
    size = float(size_bytes)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def duration_text(seconds: float) -> str:
    """Return a time as people read it: `45 s`, `3:07 min`, `2:05 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02} h"


def speed_text(step_s: float) -> str:
    """Return the time of a step, with more places the shorter it is."""
    places = 1 if step_s >= 10 else 2 if step_s >= 0.1 else 3
    return f"{step_s:.{places}f} s/step"


def queue_text(ahead: int) -> str:
    """Return where a job stands that waits for a worker."""
    if not ahead:
        return "queued: next in line"
    return f"queued: {ahead} {'job' if ahead == 1 else 'jobs'} ahead"


def rate_text(per_s: float) -> str:
    """Return how many a second, with more places the fewer they are."""
    places = 0 if per_s >= 10 else 1 if per_s >= 1 else 2
    return f"{per_s:.{places}f} a second"


def progress_facts(progress: DatasetProgress) -> list[str]:
    """Return what is known of a dataset's progress beside the count: time left, speed, bytes, cache."""
    facts = []
    if encoding := progress.encoding:
        if encoding.remaining_s is not None:
            facts.append(f"{duration_text(encoding.remaining_s)} left")
        if encoding.samples_per_s:
            facts.append(rate_text(encoding.samples_per_s))
        if encoding.written_bytes:
            facts.append(f"{size_text(encoding.written_bytes)} written")
    if progress.cached_count:
        facts.append(f"{progress.cached_count} from the cache")
    return facts


def problem_lines(dataset: Dataset) -> list[str]:
    """Return the samples that were left out, then the warnings: a line a message, ten of either, then how many more."""
    warnings = [problem for problem in dataset.problems if problem.warning]
    # Only so many travel with a dataset, bad ones first: those that did not are of the last kind told, or after it.
    untold = max(dataset.problem_count - len(dataset.problems), 0)
    left_out = _problem_lines("left out", dataset.bad_samples, untold=0 if warnings else untold)
    return left_out + _problem_lines("warning", warnings, untold=untold if warnings else 0)


def _problem_lines(word: str, problems: Sequence[SampleProblem], *, untold: int) -> list[str]:
    """Return a line for each message, with the samples that share it."""
    names: dict[str, list[str]] = {}
    for problem in problems:
        names.setdefault(_shared(problem), []).append(problem.sample_name)
    shown = list(names.items())[:_MAX_PROBLEMS]
    lines = [on_one_line(f"{word}: {_names_text(those)}: {message}") for message, those in shown]
    more = len(problems) - sum(len(those) for _, those in shown) + untold
    return [*lines, f"and {more} more"] if more else lines


def _shared(problem: SampleProblem) -> str:
    """Return the message without the caption in which unread characters stand, which alone tells samples apart."""
    if problem.reason is not SampleProblemReason.CAPTION_UNREADABLE:
        return problem.message
    return re.sub(r"^caption .*: (?=\S+ cannot read )", "", problem.message, flags=re.DOTALL)


def _names_text(names: Sequence[str]) -> str:
    each = list(dict.fromkeys(names))  # a sample may have several captions
    if len(each) == 1:
        return each[0]
    more = f" and {len(each) - _MAX_NAMES} more" if len(each) > _MAX_NAMES else ""
    return f"{len(each)} images ({', '.join(each[:_MAX_NAMES])}{more})"


def time_text(moment: datetime | None) -> str:
    """Return a moment in the time zone of this machine."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M") if moment else ""


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A file that is here now."""

    path: Path
    replaced: bool = False
    """Whether another was there under its name."""


def report_lines(
    job: TrainingJob, *, file: Fetched | None = None, best: Fetched | None = None, command: Callable[..., str]
) -> list[str]:
    """Return what a job that has succeeded made, a fact a line; `command` writes a command line of those words.

    `file` is its LoRA, `best` that of the best step where this is another.
    """
    facts = {"job": job.id}
    if result := job.result:
        facts |= {"held-out loss": job.held_out_line} if job.held_out_line else {}
        facts |= file_facts(job) | {"size": size_text(result.lora_bytes)}
        if result.stopped_early:
            fell = _fell_text(job.config.early_stopping_min_delta)
            facts["ended early"] = f"after step {job.step} of {job.total_steps}: the held-out loss no longer {fell}"
        if result.skipped_steps:
            facts["skipped steps"] = f"{result.skipped_steps}, whose loss or gradient was not finite"
        if result.step_time_s is not None:
            facts["speed"] = speed_text(result.step_time_s)
        if result.memory_peak_bytes:
            facts["memory"] = f"{size_text(result.memory_peak_bytes)} at most"
        if result.artifacts:
            facts["files"] = _files_text([artifact.artifact_name for artifact in result.artifacts])
    lines = [f"{name:<13}  {fact}" for name, fact in facts.items()]
    lines += [_fetched_line(best, f" (best step, {result.best_step})")] if best and result else []
    lines += [_fetched_line(file, f" (last step, {job.step})" if best else "")] if file else []
    lines = [*lines, *_worse_lines(job), *_look_lines(job, command)]
    return [on_one_line(line) for line in lines]


def removed_text(job: TrainingJob, checkpoints: Sequence[Checkpoint]) -> str:
    """Return what goes with an ended job that is deleted."""
    parts = ["its events"]
    if checkpoints:
        size_bytes = sum(checkpoint.size_bytes for checkpoint in checkpoints)
        parts.append(f"{_count(len(checkpoints), 'checkpoint')} ({size_text(size_bytes)})")
    artifacts = job.result.artifacts if job.result else ()
    if files := [each for each in artifacts if not each.artifact_name.startswith(CHECKPOINTS)]:
        size_bytes = sum(file.size_bytes for file in files)
        parts.append(f"{_count(len(files), 'file')} ({size_text(size_bytes)})")
    else:  # one without a result has a report and metrics, and perhaps previews
        parts.append("its files")
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def removed_checkpoints_text(job: TrainingJob, steps: Sequence[int]) -> str:
    """Return how many checkpoints of a job are removed, of which steps, why, and what keeps those of the next one."""
    if len(steps) <= _MAX_STEPS:
        written = f"written after step {', '.join(map(str, steps))}"
    else:
        written = f"written after steps {steps[0]} to {steps[-1]}"
    if job.state is JobState.CANCELLED:
        return f"removed: {_count(len(steps), 'checkpoint')}, {written}"
    why = f"checkpoints_kept is {job.config.checkpoints_kept or _NEWEST_KEPT}"
    if job.state is JobState.SUCCEEDED and not job.config.checkpoint_interval_steps:
        why = "the job has succeeded, and those of every few minutes were to go on from"
    keep = "checkpoint_interval_steps and checkpoints_kept, or checkpoint_keep_interval_steps"
    return f"removed: {_count(len(steps), 'checkpoint')}, {written}: {why}. To keep more of the next job's, set {keep}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _fell_text(min_delta: float | None) -> str:
    return f"fell by more than {min_delta:g}" if min_delta else "fell"


def fetch_lines(job: TrainingJob, command: Callable[..., str]) -> list[str]:
    """Return how to fetch what a job that has succeeded made, the best step's file first."""
    fetch = command("download", job.id)
    if not (better := better_file(job)):
        return [f"Fetch the file with: {fetch}"]
    best = command("download", job.id, "--artifact", better)
    step = job.result.best_step if job.result else None
    return [f"Fetch the best step's file ({step}) with: {best}", f"Fetch the last step's ({job.step}) with: {fetch}"]


def better_line(job: TrainingJob, command: Callable[..., str]) -> str:
    """Return what to say to whoever has the last step's file, if another is better; else nothing."""
    if not (better := better_file(job)):
        return ""
    fetch = command("download", job.id, "--artifact", better)
    return f"that is the last step's; {job.held_out_line}; fetch the best step's with: {fetch}"


def _fetched_line(file: Fetched, what: str) -> str:
    return f"{'replaced' if file.replaced else 'written':<13}  {file.path}{what}"


def _worse_lines(job: TrainingJob) -> list[str]:
    if job.result is None or job.result.best_step != 0 or not job.step:
        return []
    return ["better on the held-out pictures: before the first step; training made it worse"]


def _look_lines(job: TrainingJob, command: Callable[..., str]) -> list[str]:
    """Return how to see what the job made to look at, with commands that run as they stand."""
    names = [artifact.artifact_name for artifact in job.result.artifacts] if job.result else []
    previews = "previews" if any(name.startswith("previews/") for name in names) else ""
    report = "report" if "report.html" in names else ""
    if not (previews or report):
        return []
    what = " and ".join(filter(None, [previews, report]))
    opened = Path(job.id) / ("report.html" if report else "previews")
    return [f"see {what} with: {command('download', job.id, job.id, '--all')}   then open {opened}"]


def _files_text(names: Sequence[str]) -> str:
    """Return the names of a job's files, its many previews and LoRAs of checkpoints as counts."""
    many = {"preview": "previews/", "checkpoint": CHECKPOINTS}
    counts = {noun: sum(name.startswith(folder) for name in names) for noun, folder in many.items()}
    single = [name for name in names if not name.startswith(tuple(many.values()))]
    return ", ".join([*single, *(_count(count, noun) for noun, count in counts.items() if count)])


def to_json(value: object) -> str:
    """Return a dataclass, or a list or mapping of plain values and dataclasses, as JSON."""
    return _safe(json.dumps(_plain(value), indent=2, ensure_ascii=False))


def event_json(event: Event) -> str:
    """Return an event as a line of JSON; `type` is its name as in the contract, such as `steps_completed`."""
    kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(event).__name__).lower().removeprefix("job_")
    return _safe(json.dumps({"type": kind, **_fields(event)}, ensure_ascii=False))


def job_json(job: TrainingJob) -> str:
    """Return a job as a line of JSON that stands among those of events."""
    return _safe(json.dumps({"type": "job", **_fields(job)}, ensure_ascii=False))


def _safe(text: str) -> str:
    """Return JSON with the control characters escaped that JSON itself allows, U+007F to U+009F."""
    return re.sub(r"[\x7f-\x9f\u2028\u2029]", lambda found: f"\\u{ord(found[0]):04x}", text)


def event_line(event: Event) -> str:
    """Return an event as a line of a log."""
    moment = event.time.astimezone().strftime("%Y-%m-%d %H:%M:%S") if event.time else ""
    return on_one_line(f"{moment}  {event}")


def failure_lines(job: TrainingJob) -> list[str]:
    """Return why a job failed, and what to do."""
    if job.failure is None:
        return []
    whose = {Fault.USER: "of the request", Fault.SYSTEM: "of the service", Fault.RESOURCE: "too little memory"}
    fault = whose.get(job.failure.fault, "unknown")
    lines = [f"failed: {job.failure.message} ({job.failure.reason or 'no reason given'}; fault: {fault})"]
    lines += [f"remedy: {job.failure.remedy}"] if job.failure.remedy else []
    return [on_one_line(line) for line in lines]


def _fields(value: Any) -> dict[str, object]:
    return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}


def _plain(value: object) -> object:
    """Return what JSON can hold; a number that is not finite has no form there and becomes null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)
