"""report.html: one page about a job that opens alone, with everything inside. Its looks are in `report.html.jinja`."""

from __future__ import annotations

import ast
import base64
import inspect
import itertools
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from services.trainer.config import TrainConfig
from services.trainer.config.choices import AdapterType
from services.trainer.config.fields import ConfigFields
from services.trainer.jobs import Artifact, Job, JobState
from services.trainer.results.curves import Curve, curve_of_measurements, curve_of_steps, visible
from services.trainer.results.history import History, Picture, Preview, small_picture

MOST_PREVIEW_COLUMNS = 6
PREVIEW_PX = 384  # of the longer side: 16 prompts in 6 columns are then about 3 MB
CONTACT_SHEET_PX = 2000
PIXELATED_PX = 128  # up to here a picture is shown with its pixels, since smoothing would show nothing more
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


def render_report(
    job: Job,
    history: History,
    *,
    contact_sheet_png: bytes | None = None,
    artifacts: Sequence[Artifact] = (),
    base_model: str = DEV_MODEL,
) -> bytes:
    """The page in UTF-8, for a job in whatever state; it asks for nothing outside itself.

    `base_model` is what the example of use loads; give a name that means something to whoever reads the page.
    """
    columns = _preview_columns(history.previews)
    page = (
        _template_environment()
        .get_template("report.html.jinja")
        .render(
            job=job,
            title=job.display_name or job.job_id,
            failure=job.failure,
            figures=_figures(job, history),
            warnings=history.warnings,
            columns=columns,
            previews=_preview_rows(history.previews, columns),
            curves=_curves(history),
            times=_times(job, history),
            artifacts=[*artifacts],
            pictures={artifact.artifact_name for artifact in artifacts if artifact.artifact_name.endswith(".png")},
            settings=settings_of(job.config),
            contact_sheet=small_picture(contact_sheet_png, CONTACT_SHEET_PX) if contact_sheet_png else None,
            loads_in_diffusers=job.config.adapter_type in {AdapterType.LORA, AdapterType.DORA},
            base_model=repr(base_model),
            example_prompt=repr(next(iter(job.config.preview_prompts), "a prompt like your captions")),
        )
    )
    return page.encode("utf-8", "xmlcharrefreplace")


def settings_of(config: TrainConfig) -> tuple[Setting, ...]:
    """Every field of a configuration with its default and its meaning, in the order of the contract."""
    values, defaults = config.model_dump(mode="json"), TrainConfig().model_dump(mode="json")
    return tuple(
        Setting(name=name, value=_shown(value), default=_shown(defaults[name]), meaning=meanings()[name])
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
    found = [*_held_out_figures(history.held_out)]
    of_all = f"of {history.total_steps:,}" if history.total_steps > done else ""
    if of_all and job.state is JobState.SUCCEEDED:
        of_all += ", stopped early"
    found.append(Figure(label="steps", value=f"{done:,}", note=of_all))
    if skipped := int(history.skipped.sum()):
        found.append(Figure(label="skipped steps", value=f"{skipped:,}", note="loss or gradient not finite"))
    if done:
        found.append(Figure(label="a step", value=_seconds(float(np.median(history.durations_s))), note="median"))
    if history.memory_peak_bytes:
        found.append(Figure(label="memory at the peak", value=_size(history.memory_peak_bytes)))
    return tuple(found)


def _held_out_figures(measured: dict[int, float]) -> tuple[Figure, ...]:
    held_out = {step: loss for step, loss in measured.items() if math.isfinite(loss)}
    if not held_out:
        return (Figure(label="held-out loss", value="not measured", note="no held-out data"),)
    last = max(held_out)
    best = min(held_out, key=lambda step: (held_out[step], step))
    value, note = f"{held_out[last]:.4g}", f"after step {last:,}"
    if 0 in held_out and last:
        value = f"{held_out[0]:.4g} → {held_out[last]:.4g}"
        change = held_out[last] / held_out[0] - 1 if held_out[0] else 0.0
        note = f"base → step {last:,}: {abs(change):.0%} {'lower' if change < 0 else 'higher'}"
    best_note = "the base: training made it worse" if best == 0 and last else f"after step {best:,}"
    return (
        Figure(label="held-out loss", value=value, note=note),
        Figure(label="lowest held-out loss", value=f"{held_out[best]:.4g}", note=best_note),
    )


def _curves(history: History) -> tuple[Curve, ...]:
    steps, skipped = history.steps, history.skipped
    last_step = max([1, *steps[-1:].tolist(), *history.held_out])
    return visible(
        [
            curve_of_measurements("Held-out loss", history.held_out, last_step=last_step),
            curve_of_steps("Training loss", steps, history.losses, last_step=last_step, skipped=skipped),
            curve_of_steps("Gradient norm", steps, history.gradient_norms, last_step=last_step, skipped=skipped),
            curve_of_steps("Learning rate", steps, history.learning_rates, last_step=last_step),
        ]
    )


def _times(job: Job, history: History) -> tuple[Figure, ...]:
    seconds = {"training": float(history.durations_s.sum())}
    seconds |= {activity.value: spent for activity, spent in history.seconds.items()}
    if job.start_time_s and job.end_time_s:
        seconds["anything else"] = max(0.0, job.end_time_s - job.start_time_s - sum(seconds.values()))
    whole = sum(seconds.values()) or 1.0
    ordered = sorted(seconds.items(), key=lambda item: -item[1])
    return tuple(Figure(label=label, value=_seconds(spent), note=f"{spent / whole:.0%}") for label, spent in ordered)


def _preview_columns(previews: Sequence[Preview]) -> tuple[int, ...]:
    steps = sorted({preview.step for preview in previews})
    if len(steps) <= MOST_PREVIEW_COLUMNS:
        return tuple(steps)
    return tuple(steps[round(at)] for at in np.linspace(0, len(steps) - 1, MOST_PREVIEW_COLUMNS))


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
