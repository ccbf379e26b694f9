"""report.html: one page about a job that opens alone, with everything inside. Its looks are in `report.html.jinja`."""

from __future__ import annotations

import ast
import base64
import inspect
import itertools
import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from services.trainer.config import TrainConfig
from services.trainer.config.fields import ConfigFields
from services.trainer.jobs import Artifact, Job, JobState
from services.trainer.results.curves import Curve, curve_of_measurements, curve_of_steps, visible
from services.trainer.results.history import History, Picture, Preview, nearest_step, small_picture
from services.trainer.results.job_files import BEST_FILE, LORA_FILE

MOST_PREVIEW_COLUMNS = 6
PREVIEW_PX = 384  # of the longer side: 16 prompts in 6 columns are then about 3 MB
CONTACT_SHEET_PX = 2000
PIXELATED_PX = 128  # up to here a picture is shown with its pixels, since smoothing would show nothing more
MOST_HELD_OUT_NAMES = 20
DEV_MODEL = "black-forest-labs/FLUX.1-dev"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One field of the configuration, as text."""

    name: str
    value: str
    default: str
    meaning: str

    @property
    def changed(self) -> bool:
        """Whether somebody chose it."""
        return self.value != self.default


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number of the run and what it is."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class PreviewRow:
    """The pictures of one prompt, one a column; None where there is none."""

    prompt: str
    pictures: tuple[Picture | None, ...]


@dataclass(frozen=True, kw_only=True)
class Start:
    """What there was before the first step."""

    short: str
    full: str


BASE = Start(short="base", full="the base model")
WARM = Start(short="start", full="the file it began with")


def render_report(
    job: Job,
    history: History,
    *,
    contact_sheet_png: bytes | None = None,
    artifacts: Sequence[Artifact] = (),
    base_model: str = DEV_MODEL,
    held_out_names: Sequence[str] = (),
) -> bytes:
    """The page in UTF-8, for a job in whatever state; it asks for nothing outside itself.

    `base_model` is what the example of use loads, a folder or hub identifier; give a name that means something to
    whoever reads the page. `held_out_names` are the samples of the job's dataset that it was measured on instead.
    """
    columns = _preview_columns([preview.step for preview in history.previews], history.best_step)
    start = _start_of(job)
    shown = [preview.prompt for preview in history.previews]  # with the dataset's trigger word
    page = (
        _template_environment()
        .get_template("report.html.jinja")
        .render(
            job=job,
            title=job.display_name or job.job_id,
            failure=job.failure,
            how_far=_how_far(history),
            start=start,
            figures=_figures(job, history),
            early_stop=_early_stop(job, history),
            warnings=history.warnings,
            columns=columns,
            previews=_preview_rows(history.previews, columns),
            curves=_curves(history, start),
            times=_times(job, history),
            whole_time=_seconds(span_s) if (span_s := _span_s(job)) else "",
            artifacts=[*artifacts],
            pictures={artifact.artifact_name for artifact in artifacts if artifact.artifact_name.endswith(".png")},
            settings=settings_of(job.config),
            contact_sheet=small_picture(contact_sheet_png, CONTACT_SHEET_PX) if contact_sheet_png else None,
            held_out_names=_shortened(held_out_names),
            lora_file=_lora_file(artifacts),
            best_adapter=_best_adapter(artifacts, history, start),
            base_model=repr(base_model),
            example_prompt=repr(next(iter([*shown, *job.config.preview_prompts]), "a prompt like your captions")),
        )
    )
    return page.encode("utf-8", "xmlcharrefreplace")


def settings_of(config: TrainConfig) -> tuple[Setting, ...]:
    """Every field of a configuration with its default and its meaning, in the order of the contract."""
    values, defaults = config.model_dump(mode="json"), TrainConfig().model_dump(mode="json")
    return tuple(
        Setting(name=name, value=_shown(value), default=_shown(defaults[name]), meaning=_worded(meanings()[name]))
        for name, value in values.items()
    )


@cache
def meanings() -> dict[str, str]:
    """The sentence under each field of the configuration, read from its source, so that it is written once."""
    body = ast.parse(textwrap.dedent(inspect.getsource(ConfigFields))).body[0]
    found: dict[str, str] = {}
    statements = body.body if isinstance(body, ast.ClassDef) else []
    for field, sentence in itertools.pairwise(statements):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(sentence, ast.Expr):
            found[field.target.id] = " ".join(str(ast.literal_eval(sentence.value)).split())
    return found


def _figures(job: Job, history: History) -> tuple[Figure, ...]:
    steps = history.steps
    done = int(steps[-1]) if len(steps) else 0
    found = [*_held_out_figures(job, history)]
    of_all = f"of {history.total_steps:,}" if history.total_steps > done else ""
    if _stopped_early(job, history):
        of_all += ", stopped early"
    found.append(Figure(label="steps", value=f"{done:,}", note=of_all))
    if skipped := int(history.skipped.sum()):
        found.append(Figure(label="skipped steps", value=f"{skipped:,}", note="loss or gradient not finite"))
    if done:
        found.append(Figure(label="a step", value=_seconds(float(np.median(history.durations_s))), note="median"))
    if history.memory_peak_bytes:
        found.append(Figure(label="memory at the peak", value=_size(history.memory_peak_bytes)))
    return tuple(found)


def _held_out_figures(job: Job, history: History) -> tuple[Figure, ...]:
    held_out = {step: loss for step, loss in history.held_out.items() if math.isfinite(loss)}
    best = history.best_step
    if best is None:
        there_is_data = job.held_out or job.config.held_out_share
        return (Figure(label="held-out loss", value="not measured", note="" if there_is_data else "no held-out data"),)
    start, last = _start_of(job), max(held_out)
    value, note = f"{held_out[last]:.4g}", f"after step {last:,}"
    if 0 in held_out and last:
        value = f"{held_out[0]:.4g} → {held_out[last]:.4g}"
        change = held_out[last] / held_out[0] - 1 if held_out[0] else 0.0
        note = f"{start.short} → step {last:,}: {abs(change):.0%} {'lower' if change < 0 else 'higher'}"
    elif not last:
        note = start.full
    best_note = f"after step {best:,}" if best else f"{start.full}: training made it worse" if last else start.full
    return (
        Figure(label="held-out loss", value=value, note=note),
        Figure(label="lowest held-out loss", value=f"{held_out[best]:.4g}", note=best_note),
    )


def _start_of(job: Job) -> Start:
    return WARM if job.config.warm_start_uri else BASE


def _how_far(history: History) -> str:
    if not len(history.steps):
        return "before its first step"
    done = int(history.steps[-1])
    return f"after step {done:,}" + (f" of {history.total_steps:,}" if history.total_steps > done else "")


def _stopped_early(job: Job, history: History) -> bool:
    return job.state is JobState.SUCCEEDED and len(history.steps) > 0 and int(history.steps[-1]) < history.total_steps


def _early_stop(job: Job, history: History) -> str:
    """Why the run ended before its length; empty where it did not."""
    patience, least = job.config.early_stopping_patience, job.config.early_stopping_min_delta
    if not (patience and _stopped_early(job, history)):
        return ""
    fell = f"fell by more than {least:g}" if least else "fell"
    in_a_row = f", {patience} measurements in a row" if patience > 1 else ""
    return f"Stopped early: the held-out loss no longer {fell}{in_a_row}."


def _lora_file(artifacts: Sequence[Artifact]) -> str:
    """The file that the example of use loads; empty where the job published none."""
    names = {artifact.artifact_name for artifact in artifacts}
    return next((name for name in (LORA_FILE, BEST_FILE) if name in names), "")


def _best_adapter(artifacts: Sequence[Artifact], history: History, start: Start) -> str:
    """Which adapter `lora-best.safetensors` is; empty where there is none, or the last one is the best."""
    names, best = {artifact.artifact_name for artifact in artifacts}, history.best_step
    if BEST_FILE not in names or best is None:
        return ""
    if LORA_FILE in names and best in history.steps[-1:]:
        return ""
    if best:
        return f"The held-out loss was lowest after step {best:,}: that adapter is {BEST_FILE}."
    unchanged = "changes nothing" if start is BASE else f"is {start.full}"
    return f"The held-out loss was lowest before the first step: {BEST_FILE} {unchanged}."


def _shortened(names: Sequence[str]) -> str:
    more = len(names) - MOST_HELD_OUT_NAMES
    return ", ".join(names[:MOST_HELD_OUT_NAMES]) + (f" and {more:,} more" if more > 0 else "")


def _curves(history: History, start: Start) -> tuple[Curve, ...]:
    steps, skipped = history.steps, history.skipped
    last_step = max([1, *steps[-1:].tolist(), *history.held_out])
    return visible(
        [
            curve_of_measurements("Held-out loss", history.held_out, last_step=last_step, start=start.full),
            curve_of_steps("Training loss", steps, history.losses, last_step=last_step, skipped=skipped),
            curve_of_steps("Gradient norm", steps, history.gradient_norms, last_step=last_step, skipped=skipped),
            curve_of_steps("Learning rate", steps, history.learning_rates, last_step=last_step),
        ]
    )


def _times(job: Job, history: History) -> tuple[Figure, ...]:
    """What the time went into, the longest first. The history is of one attempt, the start that of the first."""
    begun = bool(len(history.steps))
    seconds = {"training": float(history.durations_s.sum())} if begun else {}
    seconds |= {activity.value: spent for activity, spent in history.seconds.items()}
    rest = "anything else" if begun else "anything else before the first step" if seconds else "before the first step"
    if job.epoch > 1:
        rest = "earlier attempts and anything else"
    if span_s := _span_s(job):
        seconds[rest] = max(0.0, span_s - sum(seconds.values()))
    whole = sum(seconds.values()) or 1.0
    ordered = sorted(seconds.items(), key=lambda item: -item[1])
    return tuple(Figure(label=label, value=_seconds(spent), note=f"{spent / whole:.0%}") for label, spent in ordered)


def _span_s(job: Job) -> float | None:
    """Seconds from when a worker first took the job to its end."""
    if job.start_time_s is None or job.end_time_s is None:
        return None
    return max(0.0, job.end_time_s - job.start_time_s)


def _preview_columns(previewed: Sequence[int], best_step: int | None) -> tuple[int, ...]:
    """Steps spread over the run: the first, the last, and the nearest to the best are among them."""
    steps = sorted(set(previewed))
    if len(steps) <= MOST_PREVIEW_COLUMNS:
        return tuple(steps)
    chosen = [steps[round(at)] for at in np.linspace(0, len(steps) - 1, MOST_PREVIEW_COLUMNS)]
    best = nearest_step(steps, best_step) if best_step is not None else chosen[0]
    if best not in chosen:
        chosen[chosen.index(nearest_step(chosen[1:-1], best))] = best
    return tuple(chosen)


def _preview_rows(previews: Sequence[Preview], columns: Sequence[int]) -> tuple[PreviewRow, ...]:
    found = {(preview.prompt, preview.step): preview.picture for preview in previews}
    prompts = dict.fromkeys(preview.prompt for preview in previews)
    return tuple(
        PreviewRow(prompt=prompt, pictures=tuple(_smaller(found.get((prompt, step))) for step in columns))
        for prompt in prompts
    )


def _smaller(picture: Picture | None) -> Picture | None:
    return small_picture(picture.data, PREVIEW_PX) if picture else None


@cache
def _template_environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # names, prompts and messages come from strangers
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"data_uri": _data_uri, "size": _size, "time": _time, "pixelated": _pixelated}
    return environment


def _data_uri(picture: Picture) -> str:
    return f"data:{picture.media_type};base64,{base64.b64encode(picture.data).decode()}"


def _pixelated(picture: Picture) -> bool:
    return max(picture.width_px, picture.height_px) <= PIXELATED_PX


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _seconds(seconds: float) -> str:
    if seconds >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
    if seconds >= 60:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{seconds:.3g} s" if seconds >= 0.01 else f"{seconds * 1000:.0f} ms"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _worded(meaning: str) -> str:
    """The meaning as the page says it, which shows None as "not set"."""
    return re.sub(r"(^|\. )None means", r"\1Not set means", meaning).replace("; None means", "; not set means")


def _shown(value: object) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return "\n".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return "\n".join(f"{key}: {entry}" for key, entry in value.items()) or "none"
    return str(value) or "none"
