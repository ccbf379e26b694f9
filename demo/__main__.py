"""Start the embedded stack, train a LoRA on assets/demo through the client library, and show the result.

    python -m demo [--out DIR] [--data DIR] [--steps N]

Writes lora.safetensors, before_after.png, loss.png, report.html and summary.json into DIR (demo-output by default).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import fluxsmith
from fluxsmith.errors import FluxsmithError

from demo import STARTED_S
from demo.history import History
from demo.pictures import Preview, draw_before_after, draw_losses, draw_previews
from demo.report import write_report
from services.stack import ROOT, Stack, StackError, exit_on_sigterm

DEMO_ASSETS = ROOT / "assets" / "demo"
BASE_MODEL = ROOT / "assets" / "flux-tiny"
STEPS = 250  # the held-out loss is flat from 50 to 175 (loss.png), then rises a little while lines still get cleaner
RANK = 16
LEARNING_RATE = 1e-3
CAPTION_DROPOUT = 0.3
BATCH_SIZE = 8


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What summary.json holds. Losses are flow-matching losses on the held-out drawings at fixed noise."""

    steps: int
    seconds_total: float
    seconds_submit_to_first_step: float
    seconds_per_step: float
    heldout_loss_base: float
    heldout_loss_lora: float
    heldout_loss_zero: float
    lora_bytes: int
    lora_uri: str


def main() -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "demo-output", help="folder for the results")
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "demo", help="folder of the embedded stack")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps (default %(default)s)")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    exit_on_sigterm()
    try:
        say("Starting object store, encoder and trainer on loopback")
        with Stack(arguments.data) as stack:
            say(f"Serving: encoder {stack.encoder_address}, trainer {stack.trainer_address}")
            history, job = train(stack, steps=arguments.steps, out=out)
    except (StackError, FluxsmithError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    say("Drawing the same prompts and seeds without and with the LoRA (diffusers' FluxPipeline)")
    captions = (DEMO_ASSETS / "previews.txt").read_text(encoding="utf-8").splitlines()
    previews = draw_previews(BASE_MODEL, out / "lora.safetensors", captions)
    summary = summarise(history, job, seconds_total=time.monotonic() - STARTED_S)
    show(out, previews, history, summary)
    return 0


def train(stack: Stack, *, steps: int, out: Path) -> tuple[History, fluxsmith.TrainingJob]:
    """Upload, encode, train and download through the client library, as any user would."""
    with fluxsmith.Client(encoder=stack.encoder_address, trainer=stack.trainer_address) as client:
        say("Uploading and encoding 18 drawings to learn from and 6 held out")
        dataset = client.datasets.create_from_folder(DEMO_ASSETS / "train", flip=True)
        held_out = client.datasets.create_from_folder(DEMO_ASSETS / "heldout")
        say(f"Training a LoRA: {steps} steps, rank {RANK}, learning rate {LEARNING_RATE:g}, batch {BATCH_SIZE}")
        history = History()
        job = client.train(
            dataset,
            held_out=held_out,
            name="ink drawing",
            user_id="demo",
            rank=RANK,
            alpha=RANK,
            learning_rate=LEARNING_RATE,
            batch_size=BATCH_SIZE,
            caption_dropout=CAPTION_DROPOUT,
            steps=steps,
            gradient_checkpointing=False,  # a small model needs no recomputation
            validation_interval_steps=max(1, steps // 12),
        )
        for event in job.watch():
            history.add(event)
            if not isinstance(event, fluxsmith.StepsCompleted):
                sys.stdout.write(f"    {event}\n")
        finished = job.wait()
        job.download(out / "lora.safetensors")
    return history, finished


def summarise(history: History, job: fluxsmith.TrainingJob, *, seconds_total: float) -> Summary:
    """The figures of the run."""
    result = job.result
    if (
        result is None
        or result.held_out_loss_base is None
        or result.held_out_loss_lora is None
        or result.held_out_loss_zero is None
    ):
        raise RuntimeError(f"job {job.id} succeeded without a held-out result: {job}")
    return Summary(
        steps=job.step,
        seconds_total=round(seconds_total, 1),
        seconds_submit_to_first_step=round(history.seconds_to_first_step, 2),
        seconds_per_step=round(result.step_time_s or 0.0, 4),
        heldout_loss_base=round(result.held_out_loss_base, 4),
        heldout_loss_lora=round(result.held_out_loss_lora, 4),
        heldout_loss_zero=round(result.held_out_loss_zero, 4),
        lora_bytes=result.lora_bytes,
        lora_uri=result.lora_uri,
    )


def show(out: Path, previews: list[Preview], history: History, summary: Summary) -> None:
    """Write everything that a person looks at."""
    learned = {path.read_text(encoding="utf-8").strip() for path in (DEMO_ASSETS / "train").glob("*.txt")}
    draw_before_after(previews, learned).save(out / "before_after.png")
    draw_losses(history, out / "loss.png")
    figures = asdict(summary)
    (out / "summary.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    write_report(out, figures)
    fall = 1 - summary.heldout_loss_lora / summary.heldout_loss_base
    say(f"Held-out loss {summary.heldout_loss_base:.3f} -> {summary.heldout_loss_lora:.3f} ({fall:.0%} lower)")
    for name in ("lora.safetensors", "before_after.png", "loss.png", "report.html", "summary.json"):
        sys.stdout.write(f"    {out / name}\n")
    say(f"Done in {summary.seconds_total:.0f} s. Open {out / 'report.html'} in a browser.")


def say(text: str) -> None:
    """Tell the person at the terminal what happens now."""
    sys.stdout.write(f"==> {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
