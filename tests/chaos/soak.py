"""Many short jobs through one worker: does anything grow with them? `python -m tests.chaos.soak`

Ends with 1 when something grows by more than its bound, or a job did not succeed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt

from services.stack import exit_on_sigterm
from tests.chaos.__main__ import REPORT, RESULTS, machine, remove, say
from tests.chaos.kinds import Kind
from tests.chaos.report import write_report
from tests.chaos.stand import Stand, Submission
from tests.conftest import ROOT

SHORT = Kind(
    name="short",
    fields={
        "rank": 1,
        "steps": 2,
        "seed": 1,
        "kohya_file": False,
        "target_regex": r"transformer_blocks\.0\.attn\.to_q",
    },
)
SETTINGS = {"FLUXSMITH_TRAINER_LEASE_S": "15", "FLUXSMITH_TRAINER_ACTIVE_JOBS": "2"}
KEPT_DAYS = 60 / 86_400  # with --retention: ended jobs are kept for a minute
DEPTH = 4  # unfinished jobs at any time
KEPT_JOBS = 20  # ended ones that are not deleted yet
REST_S = 1.0  # after the last of them ended, for the worker to be done with it
WARM_UP_SHARE = 0.2
STRETCHES = 10
T_95 = 2.306  # Student's t for as many stretches less two
TOMBSTONES = ("requests", "deletions")
BOUNDS = {
    "worker RSS, bytes": 2048.0,
    "worker descriptors": 0.01,
    "worker threads": 0.01,
    "server RSS, bytes": 2048.0,
    "server descriptors": 0.01,
    "server threads": 0.01,
    "database, bytes": 64.0,
    # What is left of a deleted job for a month, so that the same call comes to the same again.
    "tombstones, bytes": 1024.0,
}
IMAGE = ROOT / "docs" / "images" / "soak.png"


def main() -> int:
    """Run the jobs, fit the slopes, draw them, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2000, help="how many")
    parser.add_argument("--every", type=int, default=20, help="jobs between two looks, each with nothing under way")
    parser.add_argument("--retention", action="store_true", help="let the trainer delete ended jobs, not the client")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--image", type=Path, default=IMAGE, help="where the picture goes")
    parser.add_argument("--report", type=Path, default=REPORT, help="where the report goes")
    arguments = parser.parse_args()
    exit_on_sigterm()
    begun_s = time.monotonic()
    kept = {"FLUXSMITH_TRAINER_JOBS_KEPT_DAYS": f"{KEPT_DAYS:.6f}"} if arguments.retention else {}
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    say(f"data and logs in {folder}")
    with Stand(folder / "data", environment={**SETTINGS, **kept}) as stand:
        samples, failed = soak(stand, arguments.jobs, arguments.every, delete=not arguments.retention)
    slopes = {name: slope(samples, name, bound) for name, bound in BOUNDS.items()}
    who = "the trainer, a minute after their end" if arguments.retention else f"the client, {KEPT_JOBS} jobs later"
    results = {
        **machine(),
        "what": f"Jobs of two steps and rank 1, two at a time in turns; ended ones are deleted by {who}. "
        f"Looked at every {arguments.every} jobs, with nothing under way",
        "jobs": arguments.jobs,
        "failed": failed,
        "warm_up_jobs": round(WARM_UP_SHARE * arguments.jobs),
        "wall_s": round(time.monotonic() - begun_s),
        "slopes": slopes,
        "samples": samples,
    }
    path = arguments.results / f"soak-{datetime.now(UTC):%Y-%m-%d}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    draw(samples, results["warm_up_jobs"], arguments.image)
    write_report(arguments.results, arguments.report)
    say(json.dumps({**slopes, "failed": failed, "wall_s": results["wall_s"]}, indent=1))
    if failed or not all(each["held"] for each in slopes.values()):
        return 1
    remove(folder / "data")
    return 0


def soak(stand: Stand, jobs: int, every: int, *, delete: bool) -> tuple[list[dict[str, float]], int]:
    """Keep some jobs in the queue until so many have ended; return what was seen, and how many did not succeed.

    Looks are taken when nothing is under way: what jobs in different states hold at the moment would hide what stays.
    """
    samples: list[dict[str, float]] = []
    waiting: list[Submission] = []
    ended: list[Submission] = []
    submitted = done = failed = 0
    while done < jobs:
        while len(waiting) < DEPTH and submitted < every * (len(samples) + 1):
            waiting.append(stand.submit(SHORT, f"user-{submitted % 5}", request_id=uuid4().hex))
            submitted += 1
        states = {row.job_id: row.state for row in stand.ledger.jobs()}
        over = [each for each in waiting if states.get(each.job_id, "SUCCEEDED") not in {"QUEUED", "RUNNING"}]
        failed += sum(states.get(each.job_id, "SUCCEEDED") != "SUCCEEDED" for each in over)
        waiting = [each for each in waiting if each not in over]
        ended += over
        while delete and len(ended) > KEPT_JOBS:
            stand.delete(ended.pop(0).job_id)
        done += len(over)
        if done == submitted and not done % every:
            time.sleep(REST_S)
            samples.append({"jobs": done, **look(stand)})
            if done % (10 * every) == 0:
                say(f"{done} jobs: {samples[-1]}")
        time.sleep(0.05)
    return samples, failed


def look(stand: Stand) -> dict[str, float]:
    """What worker, server and database take now."""
    (worker,) = stand.workers()
    seen: dict[str, float] = {"worker process": worker}
    for name, pid in (("worker", worker), ("server", stand.stack.processes["trainer"].pid)):
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        seen[f"{name} RSS, bytes"] = int(status["VmRSS"].split()[0]) * 1024
        seen[f"{name} threads"] = int(status["Threads"])
        seen[f"{name} descriptors"] = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    sizes = stand.ledger.sizes_bytes()
    seen["tombstones, bytes"] = sum(sizes.get(name, 0) for name in TOMBSTONES)
    seen["database, bytes"] = sum(sizes.values()) - seen["tombstones, bytes"]
    return seen


def slope(samples: Sequence[dict[str, float]], name: str, bound: float) -> dict[str, Any]:
    """Fit a line to the means of ten stretches after the warm-up: what lies near each other is not independent."""
    warm = samples[int(WARM_UP_SHARE * len(samples)) :]
    stretches = [stretch for stretch in np.array_split(np.arange(len(warm)), STRETCHES) if len(stretch)]
    jobs = np.array([np.mean([warm[index]["jobs"] for index in stretch]) for stretch in stretches])
    values = np.array([np.mean([warm[index][name] for index in stretch]) for stretch in stretches])
    a_job, begin = np.polyfit(jobs, values, 1)
    spread = np.sum((jobs - jobs.mean()) ** 2)
    error = np.sqrt(np.sum((values - a_job * jobs - begin) ** 2) / (len(jobs) - 2) / spread)
    low, high = a_job - T_95 * error, a_job + T_95 * error
    return {
        "first": values[0],
        "last": values[-1],
        "a_job": a_job,
        "low": low,
        "high": high,
        "bound": bound,
        "held": bool(high < bound),
    }


def draw(samples: Sequence[dict[str, float]], warm_up_jobs: int, target: Path) -> None:
    """One panel for each thing that could grow."""
    mpl.use("Agg")
    panels = {
        "memory (RSS), MB": ("worker RSS, bytes", "server RSS, bytes"),
        "file descriptors": ("worker descriptors", "server descriptors"),
        "threads": ("worker threads", "server threads"),
        "database, kB": ("database, bytes", "tombstones, bytes"),
    }
    figure, axes = plt.subplots(2, 2, figsize=(9, 5.5), layout="constrained")
    jobs = [sample["jobs"] for sample in samples]
    for axis, (title, names) in zip(axes.flat, panels.items(), strict=True):
        unit = 1e6 if "MB" in title else 1e3 if "kB" in title else 1
        for name in names:
            axis.plot(jobs, [sample[name] / unit for sample in samples], label=name.split()[0].strip(","), linewidth=1)
        axis.axvspan(0, warm_up_jobs, color="0.92")
        axis.set(title=title, xlabel="jobs done", xlim=(0, jobs[-1]))
        axis.set_ylim(bottom=0)
        axis.grid(visible=True, color="0.9")
        if len(names) > 1:
            axis.legend(frameon=False)
    target.parent.mkdir(exist_ok=True)
    figure.savefig(target, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
