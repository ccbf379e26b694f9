"""report.html: one page about a job that opens alone, with everything inside. Its looks are in `report.html.jinja`."""

from __future__ import annotations

import ast
import base64
import inspect
import itertools
import re
import textwrap
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from services.trainer.best import LOOKED_AT, MOST
from services.trainer.config import TrainConfig
from services.trainer.config.fields import ConfigFields
from services.trainer.jobs import Artifact, Checkpoint, Job
from services.trainer.results.curves import Curve, curve_of_measurements, curve_of_steps, visible
from services.trainer.results.example import OF_DEV, Sampling, example_of_use
from services.trainer.results.figures import (
    BASE,
    Start,
    duration_text,
    figures_of,
    size_text,
    span_s,
    start_of,
    stopped_early,
    times_of,
)
from services.trainer.results.history import History, Picture, Preview, nearest_step, small_picture
from services.trainer.results.job_files import BEST_FILE, LORA_FILE, best_artifact_name
from services.trainer.results.samples import shown_samples

MOST_PREVIEW_COLUMNS = 6
PREVIEW_PX = 384  # of the longer side: 16 prompts in 6 columns are then about 3 MB
CONTACT_SHEET_PX = 2000
PIXELATED_PX = 128  # up to here a picture is shown with its pixels, since smoothing would show nothing more
MOST_HELD_OUT_NAMES = 20


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
class Shot:
    """A preview in its place: `number` counts all of the page, in their order; `address` is of the file beside it."""

    number: int
    step: int
    picture: Picture
    address: str
    """Relative; empty where the file is not the job's."""


@dataclass(frozen=True, kw_only=True)
class PreviewRow:
    """The previews of one prompt, one a column; None where there is none."""

    prompt: str
    shots: tuple[Shot | None, ...]


def render_report(
    job: Job,
    history: History,
    *,
    contact_sheet_png: bytes | None = None,
    artifacts: Sequence[Artifact] = (),
    checkpoints: Sequence[Checkpoint] = (),
    sampling: Sampling = OF_DEV,
    held_out_names: Sequence[str] = (),
) -> bytes:
    """The page in UTF-8, for a job in whatever state; it asks for nothing outside itself.

    `sampling` is what the example of use draws with. `held_out_names` are the samples of the job's dataset that it was
    measured on instead. The files, and the LoRAs of the `checkpoints` that stay, are linked as they lie beside the page
    once all are downloaded.
    """
    columns = _preview_columns([preview.step for preview in history.previews], history.best_step)
    start = start_of(job)
    samples, more_samples = shown_samples(contact_sheet_png, held_out_names) if contact_sheet_png else ([], 0)
    lora_file = _lora_file(artifacts, history)
    previews = _preview_rows(history.previews, columns, {artifact.artifact_name for artifact in artifacts})
    page = (
        _template_environment()
        .get_template("report.html.jinja")
        .render(
            job=job,
            title=job.display_name or job.job_id,
            failure=job.failure,
            how_far=_how_far(history),
            start=start,
            figures=figures_of(job, history),
            early_stop=_early_stop(job, history),
            warnings=history.warnings,
            columns=columns,
            previews=previews,
            shot_count=sum(shot is not None for row in previews for shot in row.shots),
            curves=_curves(history, start),
            times=times_of(job, history),
            whole_time=duration_text(whole_s) if (whole_s := span_s(job)) else "",
            best_step=history.best_step,
            checkpoints=[*checkpoints],
            artifacts=sorted(artifacts, key=lambda artifact: artifact.artifact_name != lora_file),
            pictures={artifact.artifact_name for artifact in artifacts if artifact.artifact_name.endswith(".png")},
            settings=settings_of(job.config),
            samples=samples,
            more_samples=more_samples,
            contact_sheet=small_picture(contact_sheet_png, CONTACT_SHEET_PX) if contact_sheet_png else None,
            held_out_names=_shortened(held_out_names),
            lora_file=lora_file,
            # As it was drawn, with the dataset's trigger word.
            example=example_of_use(job.config, lora_file, sampling, prompt=previews[0].prompt if previews else ""),
            which_adapter=_which_adapter(artifacts, history, start),
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


def _how_far(history: History) -> str:
    if not len(history.steps):
        return "before its first step"
    done = int(history.steps[-1])
    return f"after step {done:,}" + (f" of {history.total_steps:,}" if history.total_steps > done else "")


def _early_stop(job: Job, history: History) -> str:
    """Why the run ended before its length; empty where it did not."""
    patience, least = job.config.early_stopping_patience, job.config.early_stopping_min_delta
    if not (patience and stopped_early(job, history)):
        return ""
    fell = f"fell by more than {least:g}" if least else "fell"
    in_a_row = f", {patience} measurements in a row" if patience > 1 else ""
    return f"Stopped early: the held-out loss no longer {fell}{in_a_row}."


def _lora_file(artifacts: Sequence[Artifact], history: History) -> str:
    """The file that the example of use loads, the best step's before the last one's; empty where there is none.

    An adapter from before the first step is not worth loading, unless it is all that there is.
    """
    names = {artifact.artifact_name for artifact in artifacts}
    best = best_artifact_name(history.best_step, _last_step(history), names) if history.best_step else ""
    return best or next((name for name in (LORA_FILE, BEST_FILE) if name in names), "")


def _which_adapter(artifacts: Sequence[Artifact], history: History, start: Start) -> tuple[str, ...]:
    """Sentences that say which file holds the best adapter and which the last; none where these are one, or no best."""
    names, best, last = {artifact.artifact_name for artifact in artifacts}, history.best_step, _last_step(history)
    if BEST_FILE not in names or best is None or (LORA_FILE in names and best == last):
        return ()
    measured = f"with the {MOST} {LOOKED_AT}, {history.held_out[best]:.4g}"
    unchanged = "changes nothing" if start is BASE else f"is {start.full}"
    found = [f"{BEST_FILE} is the best step: the adapter after step {best:,}, {measured}."]
    if not best:
        found = [f"The {LOOKED_AT} was {MOST} before the first step: {BEST_FILE} {unchanged}."]
    if LORA_FILE in names:
        loss = f", {history.held_out[last]:.4g}" if last in history.held_out else ""
        found.append(f"{LORA_FILE} is the last step: the adapter after step {last:,}{loss}.")
    return tuple(found)


def _last_step(history: History) -> int:
    return int(history.steps[-1]) if len(history.steps) else 0


def _shortened(names: Sequence[str]) -> str:
    more = len(names) - MOST_HELD_OUT_NAMES
    return ", ".join(names[:MOST_HELD_OUT_NAMES]) + (f" and {more:,} more" if more > 0 else "")


def _curves(history: History, start: Start) -> tuple[Curve, ...]:
    steps, skipped = history.steps, history.skipped
    last_step = max([1, *steps[-1:].tolist(), *history.held_out])
    return visible(
        [
            curve_of_measurements(
                "Held-out loss",
                history.held_out,
                last_step=last_step,
                best=history.best_step,
                zero=history.held_out_zero,
                start=start.full,
                start_label=start.short,
            ),
            curve_of_steps("Training loss", steps, history.losses, last_step=last_step, skipped=skipped),
            curve_of_steps("Gradient norm", steps, history.gradient_norms, last_step=last_step, skipped=skipped),
            curve_of_steps("Learning rate", steps, history.learning_rates, last_step=last_step),
        ]
    )


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


def _preview_rows(
    previews: Sequence[Preview], columns: Sequence[int], files: Collection[str]
) -> tuple[PreviewRow, ...]:
    found = {(preview.prompt, preview.step): preview for preview in previews}
    numbers = itertools.count()

    def shot(prompt: str, step: int) -> Shot | None:
        if not (preview := found.get((prompt, step))):
            return None
        name = preview.artifact_name
        address = file_address(name) if name in files else ""
        picture = small_picture(preview.picture.data, PREVIEW_PX)
        return Shot(number=next(numbers), step=step, picture=picture, address=address)

    prompts = dict.fromkeys(preview.prompt for preview in previews)
    return tuple(PreviewRow(prompt=prompt, shots=tuple(shot(prompt, step) for step in columns)) for prompt in prompts)


def file_address(name: str) -> str:
    """The relative address of a file that lies beside the page, which no name can turn into another kind."""
    return f"./{quote(name)}"


@cache
def _template_environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # names, prompts and messages come from strangers
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"data_uri": _data_uri, "size": size_text, "time": _time, "pixelated": _pixelated}
    environment.filters["address"] = file_address
    return environment


def _data_uri(picture: Picture) -> str:
    return f"data:{picture.media_type};base64,{base64.b64encode(picture.data).decode()}"


def _pixelated(picture: Picture) -> bool:
    return max(picture.width_px, picture.height_px) <= PIXELATED_PX


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


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
