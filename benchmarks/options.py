"""Train the demo's drawing style once for each option, one thing changed at a time, and compare the held-out losses.

    python -m benchmarks.options --out DIR [--document docs/options.md]

Encodes assets/demo with the encoder service as the demo does, then trains on the trainer's own core in this process.
Every run is measured in the same way, whatever it minimises: mean squared error, no guidance. Writes
DIR/options-cpu-<date>.json after each run, and goes on with that file when it is started again on the same day.
`--document` puts the table between the marks of a Markdown file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fluxsmith
from diffusers import FluxTransformer2DModel

from benchmarks.measure import Failure, attempted
from services.common.cache import read_manifest
from services.common.logs import hide_progress_bars, set_up_logging
from services.common.object_store import ObjectStore
from services.common.settings import ServiceSettings
from services.stack import ROOT, Stack, exit_on_sigterm
from services.trainer.adapters.adapter import attached
from services.trainer.adapters.files import peft_file, snapshot
from services.trainer.config import TrainConfig
from services.trainer.data.cached_dataset import CachedDataset
from services.trainer.train import Step, Training, train
from services.trainer.transformer import load_transformer
from services.trainer.validation import held_out_loss

MODEL = ROOT / "assets" / "flux-tiny"
DEMO = ROOT / "assets" / "demo"
TENANT = "benchmark"
PACKAGES = ("torch", "diffusers", "peft")
BASELINE: dict[str, Any] = {
    "rank": 16,
    "alpha": 16,
    "learning_rate": 1e-3,
    "batch_size": 8,
    "caption_dropout": 0.3,
    "gradient_checkpointing": False,
}
MEASUREMENTS = 10  # on the way, evenly, the last one at the end
HEAD = "| option | | last loss | best loss | after step | step time | file, kB |"
MARKS = ("<!-- table: begin -->", "<!-- table: end -->")


@dataclass(frozen=True, kw_only=True)
class Option:
    """One run: what it changes against `BASELINE`, by the fields of `TrainConfig`."""

    group: str
    name: str
    settings: Mapping[str, Any]


def _options(group: str, **settings_by_name: Mapping[str, Any]) -> tuple[Option, ...]:
    names = {name: name.replace("_", " ") for name in settings_by_name}
    return tuple(Option(group=group, name=names[key], settings=each) for key, each in settings_by_name.items())


def _each(group: str, field: str, *values: Any) -> tuple[Option, ...]:
    return tuple(Option(group=group, name=f"`{value}`", settings={field: value}) for value in values)


def _optimizer(name: str, learning_rate: float) -> Option:
    settings = {"optimizer": name, "learning_rate": learning_rate}
    return Option(group="optimizer", name=f"`{name}`, rate {learning_rate:g}", settings=settings)


def _rank(rank: int, **more: Any) -> Option:
    name = f"{rank}" + "".join(f", {key}" for key in more)
    return Option(group="rank", name=name, settings={"rank": rank, "alpha": rank, **more})


OPTIONS = (
    *_options("baseline", seed_0={}, seed_1={"seed": 1}, seed_2={"seed": 2}),
    *_each("noise levels", "sigma_sampling", "UNIFORM", "RESOLUTION_SHIFT", "STATIC_SHIFT", "MODE", "COSMAP"),
    *_each("noise levels", "sigma_sampling", "CUBIC_CONTENT", "CUBIC_STYLE", "BETA"),
    *_options("noise levels", stratified={"sigma_stratified": True}),
    *_each("loss weighting", "loss_weighting", "BELL", "SIGMA_SQRT", "COSMAP"),
    *_each("loss function", "loss_function", "MAE", "HUBER"),
    *_options(
        "loss function",
        HUBER_exponential={"loss_function": "HUBER", "huber_schedule": "EXPONENTIAL"},
        HUBER_SNR={"loss_function": "HUBER", "huber_schedule": "SNR"},
    ),
    *_options(
        "guidance",
        fixed_at_1={"guidance": "FIXED", "guidance_scale": 1.0},
        **{"fixed at 3.5": {"guidance": "FIXED", "guidance_scale": 3.5}},
        sampled_1_to_3={"guidance": "SAMPLED", "guidance_scale": 1.0, "guidance_scale_max": 3.0},
    ),
    *_each("caption dropout", "caption_dropout", 0.0, 0.1),
    *_each("accumulated batches", "gradient_accumulation_steps", 2),
    *_each("average (EMA)", "ema_decay", 0.9, 0.99),
    *_each("learning rate", "learning_rate", 3e-4, 3e-3),
    _optimizer("ADAMW_8BIT", 1e-3),
    _optimizer("PRODIGY", 1.0),
    _optimizer("ADAFACTOR", 1e-3),
    _optimizer("LION", 3e-4),
    _optimizer("ADAMW_SCHEDULE_FREE", 2e-3),
    *_each("schedule", "learning_rate_schedule", "COSINE", "COSINE_WITH_RESTARTS", "LINEAR"),
    *_options(
        "schedule",
        POLYNOMIAL_of_power_2={"learning_rate_schedule": "POLYNOMIAL", "schedule_power": 2.0},
        warmup_of_20_steps={"warmup_steps": 20},
    ),
    *_each("LoRA+ ratio", "lora_plus_ratio", 4.0, 16.0),
    *_each("targets", "targets", "IMAGE_AND_TEXT_STREAM", "ATTENTION", "ALL_LINEAR"),
    *_each("adapter", "adapter_type", "DORA", "LOKR", "LOHA"),
    *_each("adapter dropout", "adapter_dropout", 0.1),
    *_each("first weights", "init_weights", "GAUSSIAN", "PISSA"),
    _rank(4),
    _rank(64),
    _rank(64, use_rslora=True),
    *_each("rsLoRA", "use_rslora", True),
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one run reached; `failed` says why there is nothing, and the figures are then 0."""

    group: str
    name: str
    settings: Mapping[str, Any]
    losses: Mapping[str, float]
    """Held-out loss by the step after which it was measured."""
    step_time_s: float = 0.0
    """Median wall time of a step."""
    cpu_s_a_step: float = 0.0
    """Time on cores, over all steps: other programs hardly change it."""
    file_bytes: int = 0
    failed: str = ""

    @property
    def final(self) -> float:
        """Held-out loss after the last step."""
        return list(self.losses.values())[-1]

    @property
    def best_step(self) -> str:
        """Step with the lowest held-out loss."""
        return min(self.losses, key=lambda step: self.losses[step])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, write, print the table."""
    options = _arguments(arguments)
    set_up_logging("WARNING")
    hide_progress_bars()
    exit_on_sigterm()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"options-cpu-{datetime.now(UTC):%Y-%m-%d}.json"
    report = _begun(path, options.steps)
    known = {(option.group, option.name) for option in OPTIONS}
    outcomes = [Outcome(**each) for each in report["outcomes"] if (each["group"], each["name"]) in known]
    there = {(each.group, each.name) for each in outcomes if not each.failed}
    missing = [each for each in OPTIONS if (each.group, each.name) not in there and _wanted(each, options.groups)]
    if missing:
        with tempfile.TemporaryDirectory(prefix="fluxsmith-benchmark-") as folder, bench(Path(folder)) as ready:
            for option in missing:
                outcome = ready.run(option, options.steps)
                outcomes = [each for each in outcomes if (each.group, each.name) != (option.group, option.name)]
                outcomes.append(outcome)
                report["outcomes"] = [asdict(each) for each in outcomes]
                path.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
                _say(f"{option.group}: {option.name}: {outcome.failed or format(outcome.final, '.3f')}")
    text = table(outcomes)
    print(text)
    if options.document:
        options.document.write_text(with_table(options.document.read_text(encoding="utf-8"), text), encoding="utf-8")
    return 1 if any(each.failed for each in outcomes) else 0


class Bench:
    """The base and both datasets, on which one option after the other is trained."""

    def __init__(self, transformer: FluxTransformer2DModel, training: CachedDataset, held_out: CachedDataset) -> None:
        self._transformer = transformer
        self._training = training
        self._held_out = held_out
        self._measure = TrainConfig(**BASELINE)

    def run(self, option: Option, steps: int) -> Outcome:
        """Train once; a failure is an outcome too."""
        outcome = attempted(lambda: self._run(option, steps))
        if isinstance(outcome, Failure):
            return Outcome(**vars(option), losses={}, failed=outcome.failed)
        return outcome

    def base_loss(self) -> float:
        """Held-out loss of the base as it is."""
        return held_out_loss(self._transformer, self._held_out, self._measure, lambda: None)

    def _run(self, option: Option, steps: int) -> Outcome:
        config = TrainConfig(**{**BASELINE, "steps": steps, **option.settings})
        interval = max(1, steps // MEASUREMENTS)
        losses: dict[str, float] = {}
        seconds: list[float] = []
        clock = Clock()
        with attached(self._transformer, config):
            training = Training(self._transformer, config, steps)

            def on_step(step: Step) -> None:
                seconds.append(clock.lap())
                if step.number % interval == 0 or step.number == steps:
                    with clock.stopped(), training.evaluating():
                        losses[str(step.number)] = self.base_loss()

            batches = self._training.batches(config, steps)
            try:
                train(training, batches, on_step)
            finally:
                batches.close()
            with training.evaluating():
                file = peft_file(snapshot(self._transformer, config), config, {})
        return Outcome(
            **vars(option),
            losses=losses,
            step_time_s=statistics.median(seconds),
            cpu_s_a_step=clock.cpu_s / steps,
            file_bytes=len(file),
        )


class Clock:
    """Wall time of each step and time on cores of all, without what happens while it is stopped."""

    def __init__(self) -> None:
        self.cpu_s = 0.0
        self._wall_s, self._cpu_began_s = time.perf_counter(), time.process_time()

    def lap(self) -> float:
        """Seconds since the last lap."""
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        seconds = wall_s - self._wall_s
        self.cpu_s += cpu_s - self._cpu_began_s
        self._wall_s, self._cpu_began_s = wall_s, cpu_s
        return seconds

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Count nothing meanwhile."""
        yield
        self._wall_s, self._cpu_began_s = time.perf_counter(), time.process_time()


@contextmanager
def bench(folder: Path) -> Iterator[Bench]:
    """Encode the demo's drawings as the demo does, in an embedded store under `folder`, and load the base."""
    stack = Stack(folder, environment={"FLUXSMITH_BASE_MODEL": str(MODEL)})
    try:
        stack.start_store()
        stack.start_service("encoder", stack.encoder_address)
        stack.wait_for_service("encoder", stack.encoder_address)
        with fluxsmith.Client(encoder=stack.encoder_address, tenant=TENANT) as client:
            training = client.datasets.create_from_folder(DEMO / "train", flip=True)
            held_out = client.datasets.create_from_folder(DEMO / "heldout")
        stack.stop_process("encoder")
        transformer = load_transformer(ServiceSettings(base_model=str(MODEL), device="cpu"))
        transformer.disable_gradient_checkpointing()
        store = ObjectStore(stack.store_settings)
        yield Bench(transformer, _cached(store, training), _cached(store, held_out))
    finally:
        stack.stop()


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as a table in Markdown, the baseline as one line over its seeds, in the order of `OPTIONS`."""
    order = [(option.group, option.name) for option in OPTIONS]
    done = sorted((each for each in outcomes if not each.failed), key=lambda each: order.index((each.group, each.name)))
    baseline = [each for each in done if each.group == "baseline"]
    lines = [
        "| option | | last loss | best loss | after step | step time | file, kB |",
        "|---|---|---|---|---|---|---|",
    ]
    if not baseline:
        return "\n".join([*lines, *(_line(each, 0.0) for each in done)])
    cpu_s = statistics.median(each.cpu_s_a_step for each in baseline)
    finals, bests = [each.final for each in baseline], [each.losses[each.best_step] for each in baseline]
    steps = sorted({int(each.best_step) for each in baseline})
    lines.append(
        f"| **baseline** | {len(baseline)} seeds | **{_range(finals)}** | **{_range(bests)}** "
        f"| {'-'.join(map(str, dict.fromkeys((steps[0], steps[-1]))))} | 1 | {baseline[0].file_bytes / 1000:.0f} |"
    )
    lines += [_line(each, cpu_s) for each in done if each.group != "baseline"]
    return "\n".join(lines)


def with_table(document: str, text: str) -> str:
    """The document with the table between its marks; raises `ValueError` where it has none."""
    begin, end = (document.index(mark) for mark in MARKS)
    return f"{document[:begin]}{MARKS[0]}\n{text}\n{document[end:]}"


def _line(outcome: Outcome, baseline_cpu_s: float) -> str:
    best = outcome.best_step
    ratio = f"{outcome.cpu_s_a_step / baseline_cpu_s:.2f}" if baseline_cpu_s else "-"
    return (
        f"| {outcome.group} | {outcome.name} | {outcome.final:.3f} | {outcome.losses[best]:.3f} | {best} "
        f"| {ratio} | {outcome.file_bytes / 1000:.0f} |"
    )


def _range(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.3f} ({min(values):.3f}-{max(values):.3f})"


def _cached(store: ObjectStore, dataset: fluxsmith.Dataset) -> CachedDataset:
    manifest = read_manifest(store, TENANT, dataset.manifest_digest)
    return CachedDataset(store, manifest, manifest.samples)


def _begun(path: Path, steps: int) -> dict[str, Any]:
    """The report of a run that was interrupted, or a new one."""
    head = {
        "model": MODEL.name,
        "device": f"cpu, {platform.machine()}",
        "cores": os.cpu_count() or 1,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "steps": steps,
        "baseline": BASELINE,
    }
    if path.exists():
        report: dict[str, Any] = json.loads(path.read_text())
        if all(report.get(key) == value for key, value in head.items()):
            return report
    return {"date": datetime.now(UTC).isoformat(timespec="seconds"), **head, "outcomes": []}


def _wanted(option: Option, groups: Sequence[str] | None) -> bool:
    return not groups or option.group in groups


def _say(text: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S} {text}", file=sys.stderr, flush=True)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.options", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the JSON file")
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps of a run (default: %(default)s)")
    groups = tuple(dict.fromkeys(option.group for option in OPTIONS))
    parser.add_argument("--groups", nargs="+", choices=groups, help="unset: all")
    parser.add_argument("--document", type=Path, metavar="FILE", help="Markdown file that holds the table")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
