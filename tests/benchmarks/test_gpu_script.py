"""The GPU benchmark's code at tiny sizes on the CPU, and its full-size configuration without weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import main
from benchmarks.measure import Failure, attempted
from benchmarks.scales import FULL
from benchmarks.table import table
from benchmarks.training import adapter_size, forward_tflop, skeleton, step_tflop

# In a process of its own, which ends by saying what it imported of the packages it must do without.
RUN = """
import sys
from benchmarks.gpu import main
status = main(sys.argv[1:])
heavy = ("grpc", "minio", "pydantic_settings", "sqlalchemy", "google.protobuf", "typer")
print([name for name in heavy if name in sys.modules])
sys.exit(status)
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("benchmark")
    arguments = ["--device", "cpu", "--scale", "tiny", "--out", str(folder)]
    run = subprocess.run([sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    written: dict[str, Any] = json.loads((folder / "cpu-tiny.json").read_text())
    return {**written, "imported": run.stdout.splitlines()[-1]}


def test_every_resolution_is_trained_with_and_without_checkpointing(report: dict[str, Any]) -> None:
    cases = report["transformer"]["cases"]
    assert [(case["gradient_checkpointing"], case["resolution_px"]) for case in cases] == [
        (True, 32),
        (True, 64),
        (False, 32),
        (False, 64),
    ]
    assert all(case["finite"] and case["step"]["repetitions"] == 2 and case["tflop_s"] > 0 for case in cases)


def test_checkpointing_does_not_change_the_loss(report: dict[str, Any]) -> None:
    losses = [case["loss"] for case in report["transformer"]["cases"]]
    assert losses[:2] == pytest.approx(losses[2:], rel=1e-3)


def test_every_encoder_is_measured(report: dict[str, Any]) -> None:
    for part in ("t5", "clip", "vae"):
        assert report[part]["finite"]
        assert report[part]["encode"]["median_s"] > 0


def test_t5_is_in_8_bit(report: dict[str, Any]) -> None:
    weights_gb = report["t5"]["weights_gb"]
    assert weights_gb["int8"] > 0
    assert set(weights_gb) == {"int8", "bfloat16"}  # `wo` too, which is half of what is not in 8 bit


def test_the_encoders_are_held_in_every_way(report: dict[str, Any]) -> None:
    ways = [(case["t5_precision"], case["one_at_a_time"], case["vae_tiling"]) for case in report["encoders"]]
    assert ways == [("int8", False, False), ("int8", False, True), ("int8", True, False), ("nf4", True, True)]
    assert all(case["seconds"] > 0 and case["resolution_px"] == 64 for case in report["encoders"])


def test_the_table_has_a_line_for_everything(report: dict[str, Any]) -> None:
    lines = table(report).splitlines()
    starts = (
        "cpu",
        "transformer",
        "step 32 px, checkpointing on",
        "step 64 px, checkpointing off",
        "t5",
        "clip",
        "vae",
        "encoders, int8, all",
        "encoders, nf4, one at a time, tiles",
    )
    assert all(any(line.startswith(start) for line in lines) for start in starts)


def test_a_failed_part_still_makes_a_table(report: dict[str, Any]) -> None:
    failed = {**report, "transformer": {"failed": "no reason"}, "t5": {"failed": "ImportError: bitsandbytes"}}
    failed["encoders"] = {"failed": "no memory"}
    assert "transformer: no reason" in table(failed)
    assert "ImportError: bitsandbytes" in table(failed)
    assert "no memory" in table(failed)


def test_a_failed_case_still_makes_a_table(report: dict[str, Any]) -> None:
    case = {"resolution_px": 32, "gradient_checkpointing": False, "failed": "out of memory"}
    failed = {**report, "transformer": {**report["transformer"], "cases": [case]}}
    assert any(
        line.startswith("step 32 px, checkpointing off") and "out of memory" in line
        for line in table(failed).splitlines()
    )


def test_the_full_transformer_is_flux_dev() -> None:
    parameters = sum(parameter.numel() for parameter in skeleton(FULL.transformer).parameters())
    assert parameters / 1e9 == pytest.approx(11.90, abs=0.005)
    assert not list(skeleton(FULL.transformer).buffers())  # random_transformer would leave them undefined


def test_the_full_adapter_has_the_size_of_the_documented_targets() -> None:
    assert adapter_size(FULL) / 1e6 == pytest.approx(48.6, abs=0.05)


def test_the_full_arithmetic_is_the_documented_one() -> None:
    linears, attention = forward_tflop(FULL, 1024)
    assert (linears, attention) == pytest.approx((59.5, 14.9), abs=0.1)
    assert step_tflop(linears, attention, gradient_checkpointing=False) == pytest.approx(171, abs=1)
    assert step_tflop(linears, attention, gradient_checkpointing=True) == pytest.approx(245, abs=1)


def test_a_failure_is_recorded_with_its_reason() -> None:
    def out_of_memory() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore")

    assert attempted(out_of_memory) == Failure(failed="out of memory: CUDA out of memory. Tried to allocate 2.00 GiB")
    assert attempted(lambda: 1 // 0) == Failure(failed="ZeroDivisionError: integer division or modulo by zero")


@pytest.mark.skipif(torch.cuda.is_available(), reason="it asks what is said without a CUDA GPU, and here is one")
def test_without_cuda_it_says_so_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_full_size_on_a_cpu_is_refused(tmp_path: Path) -> None:
    assert main(["--device", "cpu", "--out", str(tmp_path)]) == 2


def test_nothing_of_the_wire_is_imported(report: dict[str, Any]) -> None:
    assert report["imported"] == "[]"
