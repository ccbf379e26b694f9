"""Measure training steps and encoding at FLUX.1-dev's real sizes on one CUDA GPU, without weights and without network.

    python -m benchmarks.gpu --out DIR

Writes DIR/<device>-<scale>.json and prints a table. README.md in this folder says what each figure means.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks.encoding import EncodeFigures, measure_clip, measure_t5, measure_vae
from benchmarks.measure import Failure, attempted, log, matmul_tflop_s
from benchmarks.scales import SCALES, Scale
from benchmarks.service_memory import ServiceMemory, measure_service_memory
from benchmarks.table import table
from benchmarks.training import TrainingFigures, measure_training

PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "bitsandbytes")
EXIT_NO_DEVICE = 2


@dataclass(frozen=True, kw_only=True)
class Device:
    """What was measured on."""

    name: str
    memory_gb: float | None
    cuda: str | None
    """Version of CUDA that torch was built for."""
    matmul_tflop_s: float | Failure
    """Rate of a large bf16 product, measured before everything else."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that is written."""

    date: str
    """UTC, ISO 8601."""
    scale: str
    seconds_total: float
    device: Device
    versions: dict[str, str | None]
    transformer: TrainingFigures | Failure
    t5: EncodeFigures | Failure
    clip: EncodeFigures | Failure
    vae: EncodeFigures | Failure
    encoders: tuple[ServiceMemory, ...] | Failure
    """All three models, as the service holds them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write, print. Returns 2 when there is no device to measure on, 1 when a part failed, 0 otherwise."""
    options = _parser().parse_args(arguments)
    device, scale = torch.device(options.device), SCALES[options.scale]
    if device.type == "cuda" and not torch.cuda.is_available():
        print("benchmarks.gpu: torch sees no CUDA GPU; `--device cpu --scale tiny` runs the same code", file=sys.stderr)
        return EXIT_NO_DEVICE
    if device.type == "cpu" and scale.name != "tiny":
        print("benchmarks.gpu: on a CPU only `--scale tiny` is feasible", file=sys.stderr)
        return EXIT_NO_DEVICE
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    report = measured(scale, device)
    path = write(report, options.out)
    print(table(asdict(report)))
    log.info("written to %s", path)
    parts = (report.transformer, report.t5, report.clip, report.vae, report.encoders)
    return 1 if any(isinstance(part, Failure) for part in parts) else 0


def measured(scale: Scale, device: torch.device) -> Report:
    """Every part in turn, each on an empty device, and none stopped by another's failure."""
    start = time.perf_counter()
    rate = attempted(lambda: matmul_tflop_s(scale.matmul_size, device))
    described = _device(device, rate)
    transformer = attempted(lambda: measure_training(scale, device, None if isinstance(rate, Failure) else rate))
    t5 = attempted(lambda: measure_t5(scale, device))
    clip = attempted(lambda: measure_clip(scale, device))
    vae = attempted(lambda: measure_vae(scale, device))
    encoders = attempted(lambda: measure_service_memory(scale, device))
    return Report(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        scale=scale.name,
        seconds_total=time.perf_counter() - start,
        device=described,
        versions={"python": platform.python_version(), **{package: _version(package) for package in PACKAGES}},
        transformer=transformer,
        t5=t5,
        clip=clip,
        vae=vae,
        encoders=encoders,
    )


def write(report: Report, folder: Path) -> Path:
    """Write the report as JSON under a name made of device and scale; a later run of the same replaces it."""
    folder.mkdir(parents=True, exist_ok=True)
    device = re.sub(r"[^a-z0-9]+", "-", report.device.name.lower()).strip("-")
    path = folder / f"{device}-{report.scale}.json"
    path.write_text(json.dumps(asdict(report), indent=1, allow_nan=False) + "\n")
    return path


def _device(device: torch.device, rate: float | Failure) -> Device:
    if device.type != "cuda":
        return Device(name=device.type, memory_gb=None, cuda=None, matmul_tflop_s=rate)
    properties = torch.cuda.get_device_properties(device)
    return Device(
        name=properties.name,
        memory_gb=properties.total_memory / 1e9,
        cuda=torch.version.cuda,
        matmul_tflop_s=rate,
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the JSON file")
    parser.add_argument("--device", default="cuda", help="torch device: cuda, cuda:1, cpu (default: %(default)s)")
    parser.add_argument("--scale", choices=sorted(SCALES), default="full", help="sizes (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
