"""Measure the encoder as the service runs it, against a plain loop over FluxPipeline's own encoding, in one run.

    python -m benchmarks.encoder --model assets/flux-tiny --device cpu --out DIR    flux-tiny
    python -m benchmarks.encoder --scale full --device cuda --out DIR               FLUX.1-dev's sizes, random weights
    python -m benchmarks.encoder --scale tiny --device cpu --out DIR                that the script works, nothing else

Writes DIR/encoder-<model>-<device>-<date>.json and prints a table. README.md in this folder says what the figures mean.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.encoder_cases import CaptionFigures, ResolutionFigures, measure_captions, measure_resolution
from benchmarks.encoder_desk import EncoderDesk, folder_models, scale_models, store_settings
from benchmarks.encoder_table import table
from benchmarks.measure import log
from benchmarks.pictures import captioned_files
from benchmarks.plain_loop import pipeline_of
from benchmarks.scales import SCALES
from services.common.logs import hide_progress_bars, set_up_logging
from services.common.object_store import ObjectStore
from services.encoder.inference import EncoderModels
from services.encoder.loading import Precision

EXIT_NO_DEVICE = 2
PACKAGES = ("torch", "diffusers", "transformers", "bitsandbytes", "pillow")
FLUX_TINY_PX = (64, 128, 256)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that is written."""

    date: str
    """UTC, ISO 8601."""
    model: str
    device: str
    cores: int
    torch_threads: int
    t5_precision: str
    """Of T5 in the encoder and in the plain loop alike."""
    t5_tokens: int
    images: int
    image_px: tuple[int, int]
    """Width and height of the files."""
    image_mb: float
    """Mean size of a file."""
    seconds_total: float
    versions: dict[str, str]
    resolutions: tuple[ResolutionFigures, ...]
    captions: CaptionFigures


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write, print. Returns 2 when there is no device to measure on."""
    options = _options(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("benchmarks.encoder: torch sees no CUDA GPU; take `--device cpu`", file=sys.stderr)
        return EXIT_NO_DEVICE
    set_up_logging("WARNING")
    hide_progress_bars()
    log.setLevel(logging.INFO)
    report = measured(options, device)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"encoder-{report.model}-{device.type}-{report.date[:10]}.json"
    path.write_text(json.dumps(asdict(report), indent=1, allow_nan=False) + "\n")
    print(table(asdict(report)))
    log.info("written to %s", path)
    return 0


def measured(options: argparse.Namespace, device: torch.device) -> Report:
    """Every resolution in turn, and the captions."""
    start = time.perf_counter()
    on_cpu: Precision = "fp32" if options.model else "bf16"
    precision: Precision = options.t5_precision or ("int8" if device.type == "cuda" else on_cpu)
    models = _models(options, device, precision)
    width_px, height_px = options.image_px
    with tempfile.TemporaryDirectory() as folder, store_settings(options.store) as settings:
        files = captioned_files(Path(folder), options.images, width_px=width_px, height_px=height_px)
        desk, pipeline = EncoderDesk(ObjectStore(settings), models), pipeline_of(models)
        try:
            resolutions = tuple(
                measure_resolution(desk, pipeline, files, resolution_px=resolution_px, rounds=options.rounds)
                for resolution_px in options.resolutions
            )
            captions = measure_captions(desk, pipeline, files, rounds=options.rounds)
        finally:
            desk.close()
        image_mb = sum(file.path.stat().st_size for file in files) / len(files) / 1e6
    return Report(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        model=options.model.name if options.model else options.scale,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {platform.machine()}",
        cores=os.cpu_count() or 1,
        torch_threads=torch.get_num_threads(),
        t5_precision=precision,
        t5_tokens=models.t5_tokens,
        images=len(files),
        image_px=(width_px, height_px),
        image_mb=image_mb,
        seconds_total=time.perf_counter() - start,
        versions=versions(),
        resolutions=resolutions,
        captions=captions,
    )


def versions() -> dict[str, str]:
    """Of what computes."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def _models(options: argparse.Namespace, device: torch.device, precision: Precision) -> EncoderModels:
    if options.model:
        return folder_models(options.model, device, precision)
    return scale_models(SCALES[options.scale], device, precision)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.encoder", description=(__doc__ or "").partition("\n")[0]
    )
    models = parser.add_mutually_exclusive_group(required=True)
    models.add_argument("--model", type=Path, metavar="FOLDER", help="a FLUX.1 folder in diffusers' layout")
    models.add_argument("--scale", choices=sorted(SCALES), help="random weights of these sizes")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the JSON file")
    parser.add_argument("--device", default="cuda", help="torch device (default: %(default)s)")
    parser.add_argument(
        "--t5-precision", choices=("int8", "nf4", "bf16", "fp32"), help="unset: int8 on CUDA, as the rest on a CPU"
    )
    parser.add_argument("--store", choices=("embedded", "settings"), default="embedded", help="or FLUXSMITH_STORE_*")
    parser.add_argument("--resolutions", type=int, nargs="+", metavar="PX", help="sides of squares of equal area")
    parser.add_argument("--images", type=int, default=60, help="captioned images (default: %(default)s)")
    parser.add_argument("--image-px", type=int, nargs=2, default=(1500, 1000), metavar=("W", "H"), help="their size")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default: %(default)s)")
    options = parser.parse_args(arguments)
    options.resolutions = options.resolutions or (
        SCALES[options.scale].resolutions_px if options.scale else FLUX_TINY_PX
    )
    return options


if __name__ == "__main__":
    sys.exit(main())
