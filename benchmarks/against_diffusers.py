"""Compare the trainer with diffusers' `train_dreambooth_lora_flux.py` on the same data, by one measure.

    python -m benchmarks.against_diffusers CHECKOUT --out DIR [--python INTERPRETER]

CHECKOUT is a folder with diffusers' sources, of which the script is run as it stands; nothing of it is kept. Ours runs
through the services, as any job. Both files are then loaded by diffusers into flux-tiny, and the project's held-out
loss is measured on assets/demo/heldout. Writes DIR/against-diffusers-cpu-<date>.json as it goes, and prints a table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fluxsmith
import torch
from fluxsmith.errors import FluxsmithError
from safetensors import safe_open

from benchmarks.diffusers_losses import GUIDANCE_SCALE, HeldOut, Losses
from benchmarks.diffusers_script import (
    MODEL,
    ScriptError,
    ScriptRun,
    ScriptSettings,
    adapted_modules,
    checked_script,
    run_script,
    write_pictures,
)
from services.common.logs import hide_progress_bars, set_up_logging
from services.common.object_store import ObjectStore
from services.stack import ROOT, Stack, StackError, exit_on_sigterm

DEMO = ROOT / "assets" / "demo"
TENANT = "benchmark"
PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate")
SAME: dict[str, Any] = {"rank": 16, "alpha": 16, "learning_rate": 1e-3, "batch_size": 8}
MEASURED_EVERY = 25
LINE = "{:<22}{:<11}{:>20}{:>20}{:>20}{:>10}"


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is compared: settings of ours by the client library's names, and of the script by `ScriptSettings`'."""

    name: str
    ours: Mapping[str, Any]
    script: Mapping[str, Any]
    guided: bool = False
    """Whether the curves are measured with the guidance that the script trains with, and ours trained with it too."""
    same_modules: bool = True
    """Whether the script is told to adapt the modules that ours does."""


CASES = (
    Case(name="even levels", ours={**SAME, "sigma_sampling": "UNIFORM"}, script=SAME),
    Case(name="logit-normal levels", ours=SAME, script={**SAME, "weighting_scheme": "logit_normal"}),
    Case(
        name="all as the script",
        ours={
            **SAME,
            "sigma_sampling": "UNIFORM",
            "init_weights": "GAUSSIAN",
            "guidance": "FIXED",
            "guidance_scale": GUIDANCE_SCALE,
        },
        script=SAME,
        guided=True,
    ),
    Case(
        name="each one's defaults",
        ours={"batch_size": 4},
        script={"rank": 4, "alpha": 4, "learning_rate": 1e-4, "batch_size": 4},
        same_modules=False,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One trainer in one case with one seed."""

    case: str
    seed: int
    trainer: str
    """`fluxsmith` or `diffusers`."""
    losses: Losses
    """After the last step."""
    curve: Mapping[str, float]
    """By step, and as the case says: told guidance or not."""
    step_time_s: float
    """Ours: median of a step. The script's: mean, with encoding captions and pictures at every step."""
    lora_bytes: int


@dataclass(kw_only=True)
class Report:
    """Everything that is written; outcomes are added as they come."""

    date: str
    """UTC, ISO 8601."""
    device: str
    cores: int
    script_version: str
    """The version of diffusers that the script says it needs."""
    versions: dict[str, str]
    model: str = MODEL.name
    pictures: int
    """Trained on, mirror images included."""
    steps: int
    base: Losses
    """Of the model without a LoRA."""
    cases: tuple[Case, ...]
    outcomes: list[Outcome] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, measure, write, print. Returns 2 when something that is needed is not there."""
    options = _options(arguments)
    set_up_logging("WARNING")
    hide_progress_bars()
    exit_on_sigterm()
    try:
        script = checked_script(options.checkout, options.python)
        options.out.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(prefix="fluxsmith-benchmark-") as folder,
            Stack(Path(folder) / "data", environment={"FLUXSMITH_BASE_MODEL": str(MODEL)}) as stack,
        ):
            report = compared(options, script, Path(folder), stack)
    except (ScriptError, StackError, FluxsmithError) as error:
        print(f"benchmarks.against_diffusers: {error}", file=sys.stderr)
        return 2
    print(table(asdict(report)))
    return 0


def compared(options: argparse.Namespace, script: Path, folder: Path, stack: Stack) -> Report:
    """Every case with every seed, both trainers; the report is written after each outcome."""
    pictures = write_pictures(DEMO / "train", folder / "pictures")
    with fluxsmith.Client(encoder=stack.encoder_address, trainer=stack.trainer_address, tenant=TENANT) as client:
        dataset = client.datasets.create_from_folder(folder / "pictures" / "files")
        held_out = client.datasets.create_from_folder(DEMO / "heldout")
        measure = HeldOut(MODEL, ObjectStore(stack.store_settings), TENANT, held_out.manifest_digest)
        cases = tuple(case for case in CASES if not options.cases or case.name in options.cases)
        report = Report(
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            device=f"cpu, {platform.machine()}",
            cores=os.cpu_count() or 1,
            script_version=_script_version(script),
            versions={"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            pictures=pictures,
            steps=options.steps,
            base=measure.losses(),
            cases=cases,
        )
        path = options.out / f"against-diffusers-cpu-{report.date[:10]}.json"
        duel = Duel(
            client=client,
            dataset=dataset,
            held_out=held_out,
            measure=measure,
            script=script,
            options=options,
            folder=folder,
        )
        for seed in options.seeds:
            for case in cases:
                for outcome in duel.outcomes(case, seed):
                    report.outcomes.append(outcome)
                    path.write_text(json.dumps(asdict(report), indent=1, allow_nan=False) + "\n")
                    _say(f"{case.name}, seed {seed}: {outcome.trainer} {outcome.losses}")
    return report


class Duel:
    """Both trainers on the same pictures, and the measure of what they made."""

    def __init__(
        self,
        *,
        client: fluxsmith.Client,
        dataset: fluxsmith.Dataset,
        held_out: fluxsmith.Dataset,
        measure: HeldOut,
        script: Path,
        options: argparse.Namespace,
        folder: Path,
    ) -> None:
        self._client = client
        self._dataset = dataset
        self._held_out = held_out
        self._measure = measure
        self._folder = folder
        self._steps: int = options.steps

        @cache  # cases that differ in ours only share the script's run
        def run(settings: ScriptSettings) -> ScriptRun:
            out = folder / f"script-{time.monotonic_ns()}"
            return run_script(script, options.python, folder / "pictures" / "rows", out, settings)

        self._run_script = run

    def outcomes(self, case: Case, seed: int) -> Iterator[Outcome]:
        """Ours, then the script's."""
        lora = self._folder / f"ours-{time.monotonic_ns()}.safetensors"
        job = self._client.train(
            self._dataset,
            held_out=self._held_out,
            steps=self._steps,
            seed=seed,
            gradient_checkpointing=False,
            validation_interval_steps=MEASURED_EVERY,
            **case.ours,
        )
        events = [event for event in job.watch() if isinstance(event, fluxsmith.ValidationCompleted)]
        result = job.wait().result
        job.download(lora)
        yield Outcome(
            case=case.name,
            seed=seed,
            trainer="fluxsmith",
            losses=self._measure.losses(lora),
            curve={str(event.step): event.loss for event in events if event.step},
            step_time_s=(result.step_time_s if result else None) or 0.0,
            lora_bytes=lora.stat().st_size,
        )
        yield self._outcome_of_script(case, seed, _modules(lora) if case.same_modules else ())

    def _outcome_of_script(self, case: Case, seed: int, modules: tuple[str, ...]) -> Outcome:
        run = self._run_script(
            ScriptSettings(steps=self._steps, seed=seed, save_every=MEASURED_EVERY, modules=modules, **case.script)
        )
        losses = {step: self._measure.losses(lora) for step, lora in run.loras.items()}
        return Outcome(
            case=case.name,
            seed=seed,
            trainer="diffusers",
            losses=losses[self._steps],
            curve={str(step): each.guided if case.guided else each.bypass for step, each in losses.items()},
            step_time_s=run.step_time_s,
            lora_bytes=run.loras[self._steps].stat().st_size,
        )


def _modules(lora: Path) -> tuple[str, ...]:
    with safe_open(lora, "pt") as file:
        return adapted_modules(list(file.keys()))


def table(report: Mapping[str, Any]) -> str:
    """Mean over the seeds, and least and most, of each trainer in each case."""
    base = report["base"]
    lines = [
        f"{report['model']}, {report['device']}, {report['date']}, {report['steps']} steps, "
        f"script of diffusers {report['script_version']}",
        LINE.format("", "", "last, bypass", f"last, told {GUIDANCE_SCALE}", "lowest on the way", "s a step"),
        LINE.format("base", "", f"{base['bypass']:.3f}", f"{base['guided']:.3f}", "", ""),
    ]
    for case in report["cases"]:
        for trainer in ("fluxsmith", "diffusers"):
            some = [each for each in report["outcomes"] if (each["case"], each["trainer"]) == (case["name"], trainer)]
            if some:
                losses = [_spread([each["losses"][way] for each in some]) for way in ("bypass", "guided")]
                lowest = _spread([min(each["curve"].values()) for each in some])
                step_time_s = statistics.median(each["step_time_s"] for each in some)
                lines.append(LINE.format(case["name"], trainer, *losses, lowest, f"{step_time_s:.3f}"))
    return "\n".join(lines)


def _spread(losses: Sequence[float]) -> str:
    return f"{statistics.mean(losses):.3f} {min(losses):.2f}-{max(losses):.2f}"


def _script_version(script: Path) -> str:
    found = re.search(r'check_min_version\("([^"]+)"\)', script.read_text(encoding="utf-8"))
    return found[1] if found else "unknown"


def _say(text: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S} {text}", file=sys.stderr, flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.against_diffusers", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("checkout", type=Path, help="folder with a checkout of diffusers")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the JSON file")
    parser.add_argument("--python", default=sys.executable, help="interpreter with the script's packages (this one)")
    parser.add_argument("--steps", type=int, default=150, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2), help="default: 0 1 2")
    parser.add_argument("--cases", nargs="+", choices=[case.name for case in CASES], help="unset: all")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    torch.set_num_threads(os.cpu_count() or 1)
    sys.exit(main())
