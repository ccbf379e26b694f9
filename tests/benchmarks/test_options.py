"""The benchmark of options: what it tries, what it writes, and a few options over two steps."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

from benchmarks.options import BASELINE, MARKS, OPTIONS, Outcome, main, table, with_table
from services.trainer.config import TrainConfig
from services.trainer.config.choices import (
    AdapterType,
    GuidanceMode,
    HuberSchedule,
    InitWeights,
    LearningRateSchedule,
    LossFunction,
    LossWeighting,
    Optimizer,
    SigmaSampling,
    TargetPreset,
)

ARGUMENTS = ("--steps", "2", "--groups", "caption dropout", "guidance")
CHOICES: dict[str, type[StrEnum]] = {
    "sigma_sampling": SigmaSampling,
    "targets": TargetPreset,
    "loss_weighting": LossWeighting,
    "loss_function": LossFunction,
    "huber_schedule": HuberSchedule,
    "guidance": GuidanceMode,
    "optimizer": Optimizer,
    "learning_rate_schedule": LearningRateSchedule,
    "adapter_type": AdapterType,
    "init_weights": InitWeights,
}


def outcome(group: str, name: str, losses: dict[str, float], **figures: Any) -> Outcome:
    return Outcome(group=group, name=name, settings={}, losses=losses, **figures)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a few options have left their report."""
    folder = tmp_path_factory.mktemp("options")
    assert main([*ARGUMENTS, "--out", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("field", CHOICES)
def test_every_choice_of_the_trainer_is_tried(field: str) -> None:
    tried = {option.settings[field] for option in OPTIONS if field in option.settings}
    assert tried | {TrainConfig().model_dump()[field]} == set(CHOICES[field])


def test_every_option_is_a_configuration_of_its_own_that_differs_from_the_baseline() -> None:
    baseline = TrainConfig(**BASELINE)
    configs = [TrainConfig(**{**BASELINE, **option.settings}) for option in OPTIONS]
    assert [option.name for option, config in zip(OPTIONS, configs, strict=True) if config == baseline] == ["seed 0"]
    assert len({config.model_dump_json() for config in configs}) == len(OPTIONS)
    assert len({(option.group, option.name) for option in OPTIONS}) == len(OPTIONS)


def test_a_run_writes_losses_time_and_size_of_each_option(folder: Path) -> None:
    (path,) = folder.glob("options-cpu-*.json")
    report = json.loads(path.read_text())
    assert [each["settings"].get("caption_dropout") for each in report["outcomes"]] == [None, None, None, 0.0, 0.1]
    for each in report["outcomes"]:
        assert list(each["losses"]) == ["1", "2"]
        assert each["cpu_s_a_step"] > 0
        assert 1.2e6 < each["file_bytes"] < 1.4e6


def test_every_option_is_measured_in_the_same_way(folder: Path) -> None:
    (path,) = folder.glob("options-cpu-*.json")
    for each in json.loads(path.read_text())["outcomes"]:  # the base has 5.09, and 17 when it is told guidance of 3.5
        assert each["losses"]["2"] < 5.2


def test_a_second_run_goes_on_where_the_first_ended(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = folder.glob("options-cpu-*.json")
    before = path.read_bytes()
    document = folder / "options.md"
    document.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    assert main([*ARGUMENTS, "--out", str(folder), "--document", str(document)]) == 0
    assert path.read_bytes() == before
    assert capsys.readouterr().out.rstrip() in document.read_text()


def test_an_option_that_is_no_more_is_left_out(folder: Path, tmp_path: Path) -> None:
    (path,) = folder.glob("options-cpu-*.json")
    report = json.loads(path.read_text())
    report["outcomes"].append({**report["outcomes"][0], "name": "gone"})
    (tmp_path / path.name).write_text(json.dumps(report))
    assert main([*ARGUMENTS, "--out", str(tmp_path)]) == 0


def test_the_table_has_the_baseline_as_a_range_and_times_as_ratios_to_it() -> None:
    text = table(
        [
            outcome("rank", "4", {"10": 2.5, "20": 2.75}, cpu_s_a_step=0.3, file_bytes=4000),
            outcome("baseline", "seed 1", {"10": 2.0, "20": 2.25}, cpu_s_a_step=0.2, file_bytes=1000),
            outcome("baseline", "seed 0", {"10": 3.0, "20": 2.5}, cpu_s_a_step=0.2, file_bytes=1000),
        ]
    )
    baseline, rank = text.splitlines()[2:]
    assert baseline == (
        "| **baseline** | 2 seeds | **2.375 (2.250-2.500)** | **2.250 (2.000-2.500)** | 10-20 | 1 | 1 |"
    )
    assert rank == "| rank | 4 | 2.750 | 2.500 | 10 | 1.50 | 4 |"


def test_a_failure_has_no_line_in_the_table() -> None:
    text = table([outcome("rank", "4", {}, failed="out of memory"), outcome("rank", "64", {"1": 2.0})])
    assert "| 4 |" not in text
    assert "| 64 |" in text


def test_the_table_takes_the_place_of_the_one_before() -> None:
    document = f"# Title\n{MARKS[0]}\n| old |\n{MARKS[1]}\nEnd\n"
    assert with_table(document, "| new |") == f"# Title\n{MARKS[0]}\n| new |\n{MARKS[1]}\nEnd\n"


def test_a_document_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="substring not found"):
        with_table("# Title\n", "| new |")
