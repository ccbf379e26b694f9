"""The encoder's benchmark with tiny random weights on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.encoder import main
from benchmarks.encoder_table import WAYS, table
from benchmarks.pictures import captioned_files

ARGUMENTS = ("--scale", "tiny", "--device", "cpu", "--images", "4", "--rounds", "2", "--image-px", "200", "150")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("benchmark")
    assert main([*ARGUMENTS, "--out", str(folder)]) == 0
    (path,) = folder.glob("encoder-tiny-cpu-*.json")
    written: dict[str, Any] = json.loads(path.read_text())
    return written


def test_every_way_is_measured_at_every_resolution(report: dict[str, Any]) -> None:
    assert [figures["resolution_px"] for figures in report["resolutions"]] == [32, 64]
    for figures in report["resolutions"]:
        assert all(figures[way]["seconds"]["repetitions"] == 2 for way in WAYS)
        assert all(figures[way]["samples_per_s"] > 0 for way in WAYS)


def test_the_encoder_computes_what_the_plain_loop_computes(report: dict[str, Any]) -> None:
    assert [figures["largest_difference"] for figures in report["resolutions"]] == [0, 0]


def test_the_second_encode_runs_no_model(report: dict[str, Any]) -> None:
    for figures in report["resolutions"]:
        assert figures["first"]["thread_seconds"]["compute"] > 0
        assert figures["second"]["thread_seconds"]["compute"] == 0


def test_captions_are_measured_alone(report: dict[str, Any]) -> None:
    assert all(rate > 0 for rate in report["captions"].values())


def test_the_table_has_a_line_for_everything(report: dict[str, Any]) -> None:
    text = table(report)
    assert all(text.count(f" {name} ") == 2 for name in WAYS.values())
    assert "captions/s" in text


def test_no_picture_and_no_caption_comes_twice(tmp_path: Path) -> None:
    files = captioned_files(tmp_path, 8, width_px=64, height_px=48)
    assert len({file.path.read_bytes() for file in files}) == 8
    assert len({file.caption for file in files}) == 8


@pytest.mark.skipif(torch.cuda.is_available(), reason="it asks what is said without a CUDA GPU, and here is one")
def test_without_cuda_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--scale", "full", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
