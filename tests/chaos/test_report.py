"""The published report is what the published results give, and says what went wrong."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chaos.report import joined, newest, percentile, report
from tests.conftest import ROOT

OUTCOME = {
    "scenario": "worker killed",
    "what": "SIGKILL",
    "faults": 3,
    "jobs": 2,
    "meant_to_fail": 0,
    "recoveries_s": [1.0, 2.0, 9.0],
    "problems": [],
    "wall_s": 60,
    "notes": [],
}
CHAOS: dict[str, Any] = {"date": "2026-11-22", "machine": "m", "seed": 1, "versions": {}, "settings": {}, "kinds": {}}


def test_the_report_is_the_one_of_the_newest_results() -> None:
    results = ROOT / "benchmarks" / "results"
    assert (ROOT / "docs" / "chaos.md").read_text() == report(newest(results, "chaos"), newest(results, "soak"))


def test_a_quiet_run_has_its_row() -> None:
    text = report({**CHAOS, "outcomes": [OUTCOME]}, None)
    assert "| worker killed | SIGKILL | 3 | 2 | 0 | 0 | 2 of 2 | 0 | 2.0 s | 9.0 s |" in text
    assert "Fewer faults than a whole run has: worker killed 3 of 100." in text
    assert "What went wrong" not in text


def test_a_job_with_other_bits_is_counted_and_named() -> None:
    problem = {"job": "it", "charge": "bits differ", "text": "the LoRA is another"}
    text = report({**CHAOS, "outcomes": [{**OUTCOME, "problems": [problem]}]}, None)
    assert "| 1 of 2 |" in text
    assert "- worker killed: it: bits differ: the LoRA is another" in text


def test_runs_side_by_side_are_one_table_in_the_order_of_the_scenarios() -> None:
    later = {**CHAOS, "seed": 2, "outcomes": [{**OUTCOME, "scenario": "store killed"}, OUTCOME]}
    both = joined([later, {**CHAOS, "outcomes": [OUTCOME]}])
    assert [(each["scenario"], each["faults"]) for each in both["outcomes"]] == [
        ("worker killed", 6),
        ("store killed", 3),
    ]
    assert "**9 faults upon 6 jobs" in report(both, None)
    assert "Made by 2 runs, side by side" in report(both, None)


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.99, 99), (1.0, 100)])
def test_a_percentile_is_a_value_that_was_seen(share: float, value: int) -> None:
    assert percentile(list(range(1, 101)), share) == value
