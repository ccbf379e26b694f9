"""Does the encoder's memory stay flat with the number of images, and with their size? Each case in a fresh process.

    python -m benchmarks.encoder_memory --out DIR

Encodes 50 and 5,000 small images, and 50 and 300 large ones, with flux-tiny on the CPU into an embedded S3 store, and
writes DIR/encoder-memory-<date>.json. Files are made and uploaded by this process, so what is measured is encoding.

    python -m benchmarks.encoder_memory --encode DATASET ...

is such a process: it encodes datasets of the store that FLUXSMITH_STORE_* names, one after the other, and prints a line
of JSON for each.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.encoder_desk import EncoderDesk, folder_models, store_settings, uploaded
from benchmarks.pictures import captioned_files
from benchmarks.resident import ResidentMemory, resident_bytes
from services.common.logs import hide_progress_bars, set_up_logging
from services.common.object_store import ObjectStore
from services.common.settings import StoreSettings
from services.encoder.datasets import Datasets
from services.encoder.encoding import Progress

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "assets" / "flux-tiny"
RESOLUTION_PX = 64
NOTES = 50  # resident memory is noted so often on the way
LINE = "{:<14}{:>8}{:>9}{:>10}{:>12}{:>11}{:>10}{:>10}{:>16}"
HEADS = (
    "file px",
    "samples",
    "seconds",
    "read MB",
    "written MB",
    "before MB",
    "peak MB",
    "grown MB",
    "B more a sample",
)


@dataclass(frozen=True, kw_only=True)
class MemoryFigures:
    """One dataset encoded from beginning to end, nothing of it cached."""

    samples: int
    seconds: float
    read_mb: float
    """Image files."""
    written_mb: float
    """Tensors."""
    before_mb: float
    """Resident memory with the models loaded."""
    peak_mb: float
    """Most resident memory while encoding."""
    growth_bytes_a_sample: float
    """Slope of resident memory over samples done, in the last three quarters: the first one fills queues and pools."""
    noted_mb: tuple[tuple[int, float], ...]
    """Samples done and resident memory then."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A dataset to be made."""

    samples: int
    width_px: int
    height_px: int


SMALL = (Case(samples=50, width_px=96, height_px=96), Case(samples=5_000, width_px=96, height_px=96))
LARGE = (Case(samples=50, width_px=3000, height_px=2000), Case(samples=300, width_px=3000, height_px=2000))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write, print."""
    options = _options(arguments)
    set_up_logging("ERROR")
    hide_progress_bars()
    if options.encode:
        for figures in encoded(ObjectStore(StoreSettings()), options.encode):
            print(json.dumps(asdict(figures)), flush=True)
        return 0
    rows = []
    print(LINE.format(*HEADS))
    with store_settings("embedded") as settings:
        for case in (*SMALL, *LARGE) if options.cases == "all" else SMALL if options.cases == "small" else LARGE:
            (measured,) = encoded_elsewhere(settings, [made(settings, case)])
            rows.append({**asdict(case), **measured})
            print(_line(case, measured), flush=True)
    date = datetime.now(UTC).isoformat(timespec="seconds")
    options.out.mkdir(parents=True, exist_ok=True)
    report = {"date": date, "model": MODEL.name, "resolution_px": RESOLUTION_PX, "cores": os.cpu_count(), "rows": rows}
    name = "encoder-memory" if options.cases == "all" else f"encoder-memory-{options.cases}"
    path = options.out / f"{name}-{date[:10]}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def encoded_elsewhere(settings: StoreSettings, dataset_ids: Sequence[str]) -> list[dict[str, Any]]:
    """Encode datasets one after the other in a fresh process; each one's `MemoryFigures`."""
    environment = {
        **os.environ,
        "FLUXSMITH_STORE_ENDPOINT": settings.endpoint,
        "FLUXSMITH_STORE_ACCESS_KEY": settings.access_key,
        "FLUXSMITH_STORE_SECRET_KEY": settings.secret_key.get_secret_value(),
        "FLUXSMITH_STORE_BUCKET": settings.bucket,
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    command = [sys.executable, "-m", "benchmarks.encoder_memory", "--encode", *dataset_ids]
    run = subprocess.run(  # noqa: S603 - our own command
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return [json.loads(line) for line in run.stdout.splitlines()]


def made(settings: StoreSettings, case: Case) -> str:
    """Make a case's files and upload them; the dataset's identifier."""
    with tempfile.TemporaryDirectory() as folder:
        files = captioned_files(
            Path(folder), case.samples, width_px=case.width_px, height_px=case.height_px, png_every=0, seed=case.samples
        )
        return uploaded(Datasets(ObjectStore(settings)), files)


def encoded(store: ObjectStore, dataset_ids: Iterable[str]) -> Iterator[MemoryFigures]:
    """Encode datasets with flux-tiny in this process, one after the other."""
    desk = EncoderDesk(store, folder_models(MODEL, torch.device("cpu"), "fp32"))
    for dataset_id in dataset_ids:
        before, noted = resident_bytes(), list[tuple[int, int]]()

        def note(progress: Progress, noted: list[tuple[int, int]] = noted) -> None:
            if progress.done % max(1, progress.total // NOTES) == 0:
                noted.append((progress.done, resident_bytes()))

        with ResidentMemory() as memory:
            began_s = time.monotonic()
            last, _ = desk.encode(dataset_id, RESOLUTION_PX, on_progress=note)
        yield MemoryFigures(
            samples=last.done,
            seconds=time.monotonic() - began_s,
            read_mb=last.read_bytes / 1e6,
            written_mb=last.written_bytes / 1e6,
            before_mb=before / 1e6,
            peak_mb=memory.peak_bytes / 1e6,
            growth_bytes_a_sample=_slope(noted[len(noted) // 4 :]),
            noted_mb=tuple((done, resident / 1e6) for done, resident in noted),
        )
    desk.close()


def _slope(points: Sequence[tuple[int, int]]) -> float:
    """Least squares."""
    done, resident = zip(*points, strict=True)
    return statistics.linear_regression(done, resident).slope


def _line(case: Case, figures: Mapping[str, Any]) -> str:
    names = ("seconds", "read_mb", "written_mb", "before_mb", "peak_mb")
    numbers = [f"{figures[name]:.0f}" for name in names]
    grown = f"{figures['peak_mb'] - figures['before_mb']:.0f}"
    slope = f"{figures['growth_bytes_a_sample']:.0f}"
    return LINE.format(f"{case.width_px} x {case.height_px}", case.samples, *numbers, grown, slope)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.encoder_memory", description=(__doc__ or "").partition("\n")[0]
    )
    todo = parser.add_mutually_exclusive_group(required=True)
    todo.add_argument("--out", type=Path, metavar="DIR", help="folder for the JSON file")
    todo.add_argument("--encode", nargs="+", metavar="DATASET", help="encode these in this process")
    parser.add_argument("--cases", choices=("all", "small", "large"), default="all", help="which images")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
