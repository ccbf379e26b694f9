"""Whether an interrupted run ends with the numbers of an uninterrupted one, on a GPU and in full size.

    python -m benchmarks.resume [--device cuda --scale full] [--out DIR]

On the trainer's own core with random weights. For each optimizer four runs with an average, the adapter's dropout and
accumulation: two that nobody interrupts, one that goes on in a new adapter from its checkpoint's bytes, and one that is
swapped out to main memory and back after every step. The second one tells what the device's kernels themselves change
from run to run. Prints JSON, and writes it with `--out`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from benchmarks.measure import release
from benchmarks.scales import SCALES, Scale
from benchmarks.training import random_transformer, synthetic_batch
from services.trainer.adapters.adapter import attached
from services.trainer.checkpoints.parts import RunRecord, joined, part_file, part_tensors, split
from services.trainer.checkpoints.state import RunState
from services.trainer.config import TrainConfig
from services.trainer.flow_matching import Batch
from services.trainer.kernels import choose_kernels
from services.trainer.milestones import MilestonesState
from services.trainer.swap import Swap
from services.trainer.train import Training, TrainingState
from services.trainer.transformer import prepared

STEPS, INTERRUPTED_AFTER, ACCUMULATED = 4, 2, 2
SWITCHES: Mapping[str, Any] = {
    "ema_decay": 0.9,
    "adapter_dropout": 0.1,
    "gradient_accumulation_steps": ACCUMULATED,
    "gradient_checkpointing": True,
}
CASES: Mapping[str, Mapping[str, Any]] = {
    "ADAMW": {"optimizer": "ADAMW"},
    "ADAMW_8BIT": {"optimizer": "ADAMW_8BIT"},
    "PRODIGY": {"optimizer": "PRODIGY", "learning_rate": 1.0},
}
Batches = Sequence[Sequence[Batch]]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Between the published weights of two runs."""

    bit_equal: bool
    relative: float
    """Norm of the difference over the norm of what the uninterrupted run changed."""


@dataclass(frozen=True, kw_only=True)
class ResumeFigures:
    """One optimizer. Each is against the first uninterrupted run."""

    uninterrupted_again: Difference
    resumed: Difference
    swapped_each_step: Difference
    checkpoint_bytes: int
    step_s: float
    """Median of the first run's, its first step left out; of accumulated batches."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print. Returns 2 without such a device, 1 when an interruption changed more than a repetition."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resume", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cpu", help="torch device (default: %(default)s)")
    parser.add_argument("--scale", choices=sorted(SCALES), default="tiny", help="sizes (default: %(default)s)")
    parser.add_argument("--case", choices=sorted(CASES), action="append", help="optimizer (default: all)")
    parser.add_argument(
        "--deterministic",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="kernels that repeat to the bit, as the trainer uses them",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the JSON file")
    options = parser.parse_args(arguments)
    device, scale = torch.device(options.device), SCALES[options.scale]
    if device.type == "cuda" and not torch.cuda.is_available():
        print("benchmarks.resume: torch sees no CUDA GPU", file=sys.stderr)
        return 2
    transformer = prepared(random_transformer(scale.transformer, device))
    choose_kernels(deterministic=options.deterministic)
    generator = torch.Generator().manual_seed(0)
    side_px = scale.resolutions_px[0]
    batches = [[synthetic_batch(scale, side_px, generator) for _ in range(ACCUMULATED)] for _ in range(STEPS)]
    cases = {
        name: compared(transformer, batches, _config(scale, fields))
        for name, fields in CASES.items()
        if not options.case or name in options.case
    }
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": torch.__version__,
        "scale": scale.name,
        "resolution_px": side_px,
        "deterministic": options.deterministic,
        "steps": STEPS,
        "interrupted_after": INTERRUPTED_AFTER,
        "switches": dict(SWITCHES),
        "cases": {name: asdict(case) for name, case in cases.items()},
    }
    text = json.dumps(report, indent=1)
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        name = str(report["device"]).lower().replace(" ", "-")
        kind = "" if options.deterministic else "-not-deterministic"
        (options.out / f"resume-{name}-{scale.name}{kind}.json").write_text(text + "\n")
    return 0 if all(map(as_exact_as_the_device, cases.values())) else 1


def as_exact_as_the_device(case: ResumeFigures) -> bool:
    """Whether interruptions change nothing where runs repeat to the bit, else no more than thrice a repetition."""
    bound = 3 * case.uninterrupted_again.relative
    return all(each.relative <= bound for each in (case.resumed, case.swapped_each_step))


def compared(transformer: FluxTransformer2DModel, batches: Batches, config: TrainConfig) -> ResumeFigures:
    """The four runs of one configuration."""
    first, start = _run(transformer, batches, config)
    again, _ = _run(transformer, batches, config)
    half, _ = _run(transformer, batches, config, end=INTERRUPTED_AFTER)
    record, parts = _written(half.state)
    resumed, _ = _run(transformer, batches, config, state=_read(record, parts))
    swapped, _ = _run(transformer, batches, config, swap_each_step=True)

    def difference(other: _Ended) -> Difference:
        return _difference(first.published, other.published, start)

    return ResumeFigures(
        uninterrupted_again=difference(again),
        resumed=difference(resumed),
        swapped_each_step=difference(swapped),
        checkpoint_bytes=len(record) + sum(map(len, parts.values())),
        step_s=statistics.median(first.seconds[1:]),
    )


@dataclass(frozen=True, kw_only=True)
class _Ended:
    published: dict[str, Tensor]
    state: TrainingState
    seconds: list[float]


def _run(
    transformer: FluxTransformer2DModel,
    batches: Batches,
    config: TrainConfig,
    *,
    end: int = STEPS,
    state: TrainingState | None = None,
    swap_each_step: bool = False,
) -> tuple[_Ended, dict[str, Tensor]]:
    """Train to step `end`, from `state` if given, with an adapter of its own; return what came of it, and its start."""
    transformer.enable_gradient_checkpointing()
    with attached(transformer, config) as adapter:
        training, swap = Training(transformer, config, STEPS), Swap(transformer)
        start = {name: each.detach().to("cpu", copy=True) for name, each in training.parameters.items()}
        if state:
            training.load_state(state)
        swap.carry(adapter, training)
        seconds = []
        for step_batches in batches[training.steps_done : end]:
            begun = time.perf_counter()
            float(training.step(step_batches).loss)  # waits for the device
            seconds.append(time.perf_counter() - begun)
            if swap_each_step:
                swap.out()
                swap.back()
        ended = _Ended(published=training.published(), state=training.state(), seconds=seconds)
    release()
    return ended, start


def _written(state: TrainingState) -> tuple[bytes, dict[str, bytes]]:
    """The bytes that a checkpoint consists of."""
    milestones = MilestonesState(
        losses={}, best=None, to_beat=0.0, not_better=0, previewed=frozenset(), missed_in_a_row=0
    )
    record, parts = split(RunState(training=state, milestones=milestones, pissa_factors={}, skipped_steps=0))
    return record.model_dump_json().encode(), {name: part_file(tensors) for name, tensors in parts.items()}


def _read(record: bytes, parts: Mapping[str, bytes]) -> TrainingState:
    tensors = {name: part_tensors(data) for name, data in parts.items()}
    return joined(RunRecord.model_validate_json(record), tensors).training


def _difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> Difference:
    return Difference(
        bit_equal=all(torch.equal(one[name], other[name]) for name in one),
        relative=_norm(one[name] - other[name] for name in one) / _norm(one[name] - start[name] for name in one),
    )


def _norm(tensors: Iterator[Tensor]) -> float:
    total: float = sum(float(tensor.double().square().sum()) for tensor in tensors) ** 0.5
    return total


def _config(scale: Scale, fields: Mapping[str, Any]) -> TrainConfig:
    sizes = {"rank": scale.rank, "alpha": float(scale.rank), "learning_rate": 1e-3}
    return TrainConfig.model_validate({**sizes, **SWITCHES, **fields})


if __name__ == "__main__":
    sys.exit(main())
