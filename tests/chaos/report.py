"""Writes docs/chaos.md from the newest results: every number in it comes out of a run.

python -m tests.chaos.report [RESULTS ...]: of runs that were made side by side, the results are joined first.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.chaos.campaign import KILL_SCENARIOS, NAMES
from tests.chaos.judge import Charge
from tests.conftest import ROOT

HEAD = """\
# Chaos

<!-- Written by `python -m tests.chaos.report` from the results in benchmarks/results/; do not edit. -->

What is promised: a job that was acknowledged is never lost, it ends with the very bits that it would have had if
nothing had happened, its file is published once and whole, and its events have no gap. Here the whole stack, real in
every part (object store, encoder, trainer and its worker processes, the small base model), is broken while jobs run,
and each job is then judged.
"""

JUDGED = """\
## How it is judged

Before the first fault each kind of job runs once, alone and undisturbed: that is the reference. Then a client keeps
three jobs in the queue, asking again with the same `request_id` for as long as nobody answers, and faults fall at
random moments, up to four seconds after steps were last seen. When all faults have fallen, every acknowledged job is
awaited and judged by what database and store hold, which are read directly:

- **Lost**: a job that does not end as it should (SUCCEEDED, but for jobs that must fail), or a fault that no job got
  over within three minutes.
- **Duplicate or torn**: more than one job of one request, more than one published `lora.safetensors`, or any file,
  checkpoint or part of one that the database names and whose bytes in the store do not have the digest told.
- **Bits equal**: tensors of all adapter files, the one with the lowest held-out loss among them, have the digests of
  the reference; the loss, gradient norm and learning rate of every step that was ever told, and all held-out losses,
  are the same numbers.
- **Events**: sequences without a gap, steps in order within each attempt, one end, and nothing after it. An attempt
  that follows another must be a resume: its first step is the one after the newest checkpoint that was written before
  and not reported as damaged. A service that always began anew would have the right bits; here it would be found out.
- **Time to recover**: from the fault until a step is written by an attempt that began after it, of a job that the
  victim had. Where nothing that runs steps was hit: until the next step, or, where the way to the store was, until the
  next file or checkpoint is written after it came back. The outage itself counts too. Looked at every 50 ms.
"""

AGAIN = """\
## Run it again

    make chaos                                   # all of it, the report included
    scripts/chaos.sh --only "store killed" --seed 7
    scripts/chaos.sh --share 0.1                 # a tenth of the faults
    scripts/chaos.sh --minutes 30                # whatever falls within half an hour
    scripts/chaos.sh soak                        # 2,000 jobs through one worker

What is not the whole is written to a temporary folder, and not here. A short form is part of `make test`
(`tests/chaos/test_short.py`). Linux only: processes are found in `/proc`. A full disk needs the right to mount a tmpfs,
a moved clock the development package `libfaketime`; where either is missing, the scenario counts as failed.

## What is not covered

- **Power loss.** Processes are killed, the kernel is not: that what was written survives the machine rests on SQLite's
  `synchronous=FULL` and on the store's own syncing, which nothing here tests.
- **PostgreSQL and other stores.** The stack here is SQLite and SeaweedFS. The same database code is tested on a real
  PostgreSQL, and the object store's code on a second S3 server, under `tests/services`.
- **GPUs.** Bit-equality is that of one machine's CPU. A checkpoint that goes on with other versions of the programs is
  warned about, and not compared here.
- **Several machines.** Workers share one clock and one kernel. Partitions appear only as a worker that is stopped and
  as a network to the store that fails.
- **The encoder.** It runs, but is not struck; its own tests kill it.
"""


def write_report(results: Path, target: Path) -> None:
    """Write the report of the newest chaos run and the newest soak in a folder."""
    target.write_text(report(newest(results, "chaos"), newest(results, "soak")))


def newest(folder: Path, name: str) -> dict[str, Any] | None:
    """The newest results of a kind; None when there are none."""
    found = sorted(folder.glob(f"{name}-*.json"))
    return dict(json.loads(found[-1].read_text())) if found else None


def joined(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The results of runs that were made side by side, as those of one: faults of the same scenario are added up."""
    by_scenario: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES}
    for run in runs:
        for outcome in run["outcomes"]:
            by_scenario[outcome["scenario"]].append(outcome)
    busy = f"Made by {len(runs)} runs, side by side on a machine that was fully busy: alone, jobs recover sooner."
    remark = busy if len(runs) > 1 else ""
    seed = ", ".join(str(run["seed"]) for run in runs)
    outcomes = [_added_up(each) for each in by_scenario.values() if each]
    return {**runs[0], "seed": seed, "remark": remark, "outcomes": outcomes}


def _added_up(outcomes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    numbers = {name: sum(each[name] for each in outcomes) for name in ("faults", "jobs", "meant_to_fail", "wall_s")}
    lists = {name: [one for each in outcomes for one in each[name]] for name in ("recoveries_s", "problems", "notes")}
    return {**outcomes[0], **numbers, **lists}


def report(chaos: dict[str, Any] | None, soak: dict[str, Any] | None) -> str:
    """The whole document."""
    parts = [HEAD]
    if chaos:
        parts += [_summary(chaos), _table(chaos["outcomes"]), JUDGED, _jobs(chaos), _problems(chaos["outcomes"])]
    if soak:
        parts.append(_soak(soak))
    return "\n".join([*(part for part in parts if part), AGAIN])


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share of all does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _summary(chaos: dict[str, Any]) -> str:
    outcomes = chaos["outcomes"]
    faults, jobs = sum(each["faults"] for each in outcomes), sum(each["jobs"] for each in outcomes)
    counts = [sum(_jobs_with(each, charge) for each in outcomes) for charge in Charge]
    told = ", ".join(f"{count} {charge.value}" for count, charge in zip(counts, Charge, strict=True))
    minutes = sum(each["wall_s"] for each in outcomes) / 60
    return (
        f"**{faults} faults upon {jobs} jobs: {told}.** {chaos['date'][:10]}, {chaos['machine']}, flux-tiny on the "
        f"CPU, {minutes:.0f} minutes of faults, commit {chaos.get('commit') or 'unknown'}, seed {chaos['seed']}. "
        f"{chaos.get('remark', '')}".strip()
        + "\n"
    )


def _table(outcomes: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| fault | what is done | runs | jobs | lost | duplicate or torn | bits equal | events wrong | p50 | p99 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for each in outcomes:
        times = each["recoveries_s"]
        middle, high = (f"{percentile(times, share):.1f} s" if times else "-" for share in (0.5, 0.99))
        to_succeed = each["jobs"] - each["meant_to_fail"]
        equal = f"{to_succeed - _jobs_with(each, Charge.LOST, Charge.UNEQUAL)} of {to_succeed}" if each["jobs"] else "-"
        lines.append(
            f"| {each['scenario']} | {each['what']} | {each['faults']} | {each['jobs']} | "
            f"{_jobs_with(each, Charge.LOST)} | {_jobs_with(each, Charge.TORN)} | {equal} | "
            f"{_jobs_with(each, Charge.EVENTS)} | {middle} | {high} |"
        )
    notes = [f"{each['scenario'].capitalize()}: {note}." for each in outcomes for note in each["notes"]]
    missing = [name for name in NAMES if name not in {each["scenario"] for each in outcomes}]
    notes += [f"**Not part of this run: {', '.join(missing)}.**"] if missing else []
    short = [
        f"{each['scenario']} {each['faults']} of {KILL_SCENARIOS[each['scenario']][1]}"
        for each in outcomes
        if each["faults"] < KILL_SCENARIOS.get(each["scenario"], ("", 0))[1]
    ]
    notes += [f"**Fewer faults than a whole run has: {', '.join(short)}.**"] if short else []
    times = "p50 and p99 are of the time to recover; p99 of fewer than a hundred runs is the longest."
    return "\n".join([*lines, "", times, "", " ".join(notes), ""])


def _jobs_with(outcome: dict[str, Any], *charges: Charge) -> int:
    return len({problem["job"] for problem in outcome["problems"] if problem["charge"] in charges})


def _jobs(chaos: dict[str, Any]) -> str:
    rows = [
        f"| {name} | {', '.join(f'{field} {_plain(value)}' for field, value in fields.items())} |"
        for name, fields in chaos["kinds"].items()
    ]
    settings = ", ".join(f"`{name}` {value}" for name, value in chaos["settings"].items())
    versions = ", ".join(f"{name} {value}" for name, value in chaos["versions"].items())
    head = ["The jobs, in turn, a checkpoint every five steps:", "", "| kind | configuration |", "|---|---|"]
    return "\n".join([*head, *rows, "", f"Settings of the trainer: {settings}. Versions: {versions}.", ""])


def _plain(value: object) -> str:
    return str(value).removeprefix("OPTIMIZER_").removeprefix("LEARNING_RATE_SCHEDULE_")


def _problems(outcomes: Sequence[dict[str, Any]]) -> str:
    found = [
        f"- {outcome['scenario']}: {problem['job']}: {problem['charge']}: {problem['text']}"
        for outcome in outcomes
        for problem in outcome["problems"]
    ]
    return "\n".join(["## What went wrong", "", *found, ""]) if found else ""


def _soak(soak: dict[str, Any]) -> str:
    rows = [
        f"| {name} | {slope['first']:.4g} | {slope['last']:.4g} | {slope['a_job']:.4g} | "
        f"{slope['low']:.4g} to {slope['high']:.4g} | {slope['bound']:.4g} | {'yes' if slope['held'] else '**no**'} |"
        for name, slope in soak["slopes"].items()
    ]
    head = f"""\
## Soak: {soak["jobs"]:,} jobs through one worker

{soak["what"]}. {soak["date"][:10]}, {soak["machine"]}, commit {soak.get("commit") or "unknown"};
{soak["wall_s"] / 60:.0f} minutes, {soak["failed"]} jobs did not succeed. A line was fitted to every series after
the first {soak["warm_up_jobs"]:,} jobs; the range is the 95 % interval of its slope, from the spread of slopes over
ten stretches of the run. A bound holds when the whole range lies below it.

| series | first | last | slope a job | 95 % | bound | held |
|---|---|---|---|---|---|---|
"""
    remarks = "".join(f"\n{remark}\n" for remark in soak.get("remarks", ()))
    return head + "\n".join(rows) + "\n" + remarks + "\n![What grows over the jobs](images/soak.png)\n"


if __name__ == "__main__":
    if files := sys.argv[1:]:
        results = joined([json.loads(Path(file).read_text()) for file in files])
        target = ROOT / "benchmarks" / "results" / f"chaos-{results['date'][:10]}.json"
        target.write_text(json.dumps(results, indent=1) + "\n")
    write_report(ROOT / "benchmarks" / "results", ROOT / "docs" / "chaos.md")
