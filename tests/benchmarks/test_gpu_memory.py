"""The GPU's benchmarks of memory and of interrupted runs, at tiny sizes on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from benchmarks import resume
from benchmarks.memory import CASES, memory
from benchmarks.scales import TINY
from benchmarks.training import random_transformer
from services.trainer.transformer import prepared


def test_interrupted_and_swapped_runs_end_with_the_bits_of_one_left_alone(tmp_path: Path) -> None:
    assert resume.main(["--case", "ADAMW_8BIT", "--out", str(tmp_path)]) == 0
    case = json.loads((tmp_path / "resume-cpu-tiny.json").read_text())["cases"]["ADAMW_8BIT"]
    assert [case[name]["bit_equal"] for name in ("uninterrupted_again", "resumed", "swapped_each_step")] == [True] * 3


def test_interruption_that_changes_more_than_a_repetition_fails() -> None:
    same, other = (resume.Difference(bit_equal=not share, relative=share) for share in (0.0, 1e-6))
    exact = resume.ResumeFigures(
        uninterrupted_again=same, resumed=same, swapped_each_step=same, checkpoint_bytes=1, step_s=1.0
    )
    drifting = resume.ResumeFigures(
        uninterrupted_again=same, resumed=other, swapped_each_step=same, checkpoint_bytes=1, step_s=1.0
    )
    assert (resume.as_exact_as_the_device(exact), resume.as_exact_as_the_device(drifting)) == (True, False)


def test_every_case_of_the_memory_benchmark_runs_and_leaves_the_base_alone() -> None:
    base = prepared(random_transformer(TINY.transformer, torch.device("cpu")))
    names = set(dict(base.named_modules()))
    for _, changed in CASES:
        figures = memory(base, TINY, TINY.resolutions_px[0], changed)
        assert figures.adapter_parameters > 0
    assert set(dict(base.named_modules())) == names
