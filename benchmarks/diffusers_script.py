"""diffusers' own `train_dreambooth_lora_flux.py`, run as it stands on a folder of captioned pictures."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from services.stack import ROOT

SCRIPT = Path("examples") / "dreambooth" / "train_dreambooth_lora_flux.py"
PACKAGES = ("torchvision", "datasets", "tensorboard", "jinja2", "peft", "accelerate", "sentencepiece")
LORA_FILE = "pytorch_lora_weights.safetensors"
RESOLUTION_PX = 64
T5_TOKENS = 32  # as flux-tiny's encoder service has it
MODEL = ROOT / "assets" / "flux-tiny"


class ScriptError(Exception):
    """The script cannot be run, or failed; the message says why."""


@dataclass(frozen=True, kw_only=True)
class ScriptSettings:
    """What is given to the script; everything else has the script's own default."""

    rank: int
    alpha: int
    learning_rate: float
    batch_size: int
    steps: int
    seed: int
    save_every: int
    """Steps between checkpoints."""
    weighting_scheme: str = "none"
    """`none` draws noise levels evenly, `logit_normal` as its name says; neither weights the loss."""
    guidance_scale: float = 3.5
    modules: tuple[str, ...] = ()
    """Full names of the modules to adapt; empty means the script's own choice."""


@dataclass(frozen=True, kw_only=True)
class ScriptRun:
    """What a run left."""

    loras: dict[int, Path]
    """Files by the step after which they were written, the last one at the end."""
    step_time_s: float
    """Mean over the run, as its progress bar told in the end."""


def checked_script(checkout: Path, python: str) -> Path:
    """The script in a checkout of diffusers; raises `ScriptError` when it or a package that it needs is not there."""
    script = checkout / SCRIPT
    if not script.is_file():
        raise ScriptError(f"{checkout} has no {SCRIPT}: give the folder of a checkout of diffusers")
    code = f"import importlib.util as u; print(*(n for n in {PACKAGES!r} if u.find_spec(n) is None))"
    try:
        found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError) as error:
        raise ScriptError(f"{python} is no Python that runs: {error}") from error
    if missing := found.stdout.split():
        raise ScriptError(
            f"{python} lacks {', '.join(missing)}, which diffusers' script needs: install them there with "
            "`pip install --no-deps` for torchvision, or give another interpreter with --python"
        )
    return script.resolve()


def write_pictures(source: Path, folder: Path) -> int:
    """Write every captioned picture of `source` and its mirror image for both trainers; return how many there are.

    `folder/files` has each with its caption in a `.txt` file, `folder/rows` the same files with a table of captions as
    the library `datasets` reads it. They have the resolution of training already, so that neither resizes them.
    """
    rows = []
    for name in ("files", "rows"):
        (folder / name).mkdir(parents=True)
    for path in sorted(source.glob("*.png")):
        caption = path.with_suffix(".txt").read_text(encoding="utf-8").strip()
        picture = Image.open(path).convert("RGB").resize((RESOLUTION_PX, RESOLUTION_PX), Image.Resampling.LANCZOS)
        for stem, shown in ((path.stem, picture), (f"{path.stem}-mirrored", ImageOps.mirror(picture))):
            for name in ("files", "rows"):
                shown.save(folder / name / f"{stem}.png")
            (folder / "files" / f"{stem}.txt").write_text(caption, encoding="utf-8")
            rows.append({"file_name": f"{stem}.png", "text": caption})
    (folder / "rows" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return len(rows)


def run_script(script: Path, python: str, rows: Path, out: Path, settings: ScriptSettings) -> ScriptRun:
    """Train with the script; raises `ScriptError` with the end of what it printed."""
    out.mkdir(parents=True, exist_ok=True)
    log = out / "log.txt"
    command = [python, "-m", "benchmarks.diffusers_launch", str(script), *script_arguments(rows, out, settings)]
    with log.open("wb") as output:
        process = subprocess.run(command, cwd=ROOT, env=_environment(out), stdout=output, stderr=output, check=False)  # noqa: S603
    text = log.read_text(errors="replace")
    last = out / LORA_FILE
    if process.returncode or not last.is_file():
        raise ScriptError(f"{script.name} ended with code {process.returncode}; the end of {log}:\n{text[-1500:]}")
    saved = {int(path.parent.name.rpartition("-")[2]): path for path in out.glob(f"checkpoint-*/{LORA_FILE}")}
    return ScriptRun(loras=dict(sorted({**saved, settings.steps: last}.items())), step_time_s=step_time(text))


def script_arguments(rows: Path, out: Path, settings: ScriptSettings) -> list[str]:
    """The script's command line."""
    given = {
        "pretrained_model_name_or_path": MODEL,
        "dataset_name": rows,
        "caption_column": "text",
        "instance_prompt": "a drawing",  # required, and not used where every picture has a caption
        "cache_dir": out / "cache",
        "output_dir": out,
        "resolution": RESOLUTION_PX,
        "max_sequence_length": T5_TOKENS,
        "mixed_precision": "no",
        "rank": settings.rank,
        "lora_alpha": settings.alpha,
        "learning_rate": settings.learning_rate,
        "train_batch_size": settings.batch_size,
        "max_train_steps": settings.steps,
        "checkpointing_steps": settings.save_every,
        "seed": settings.seed,
        "weighting_scheme": settings.weighting_scheme,
        "guidance_scale": settings.guidance_scale,
    }
    if settings.modules:
        given["lora_layers"] = ",".join(settings.modules)
    return [f"--{name}={value}" for name, value in given.items()]


def step_time(log: str) -> float:
    """Mean seconds of a step, by the progress bar's clock: from its first step to its last."""
    points = [
        (int(done), 60 * int(minutes) + int(seconds))
        for done, minutes, seconds in re.findall(r"Steps:.*?(\d+)/\d+ \[(\d+):(\d+)<", log)
    ]
    if not points or points[-1][0] == 0:
        return 0.0
    return points[-1][1] / points[-1][0]


def _environment(out: Path) -> dict[str, str]:
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(out / "home")}
    return {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **offline}


def adapted_modules(keys: Sequence[str]) -> tuple[str, ...]:
    """Full names of the modules that a LoRA file with these keys adapts."""
    found = {re.sub(r"^transformer\.|\.lora_[AB]\.weight$", "", key) for key in keys if ".lora_" in key}
    return tuple(sorted(found))
