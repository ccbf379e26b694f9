"""What tells one base model from another, in milliseconds."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from services.trainer.checkpoints.fingerprints import BLOCK_BYTES, BLOCKS, base_fingerprint, versions
from services.trainer.config import TrainConfig
from services.trainer.config.choices import Optimizer

LARGE = BLOCKS * BLOCK_BYTES // 4 + 1_000_000  # numbers in float32: more than is read whole


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A transformer's folder with a small file and a large one."""
    (tmp_path / "config.json").write_text("{}")
    safetensors.torch.save_file({"w": torch.zeros(100)}, tmp_path / "a.safetensors")
    safetensors.torch.save_file({"w": torch.zeros(LARGE)}, tmp_path / "b.safetensors")
    return tmp_path


def flip(path: Path, at: int) -> None:
    """Flip a bit; from the end where `at` is negative."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_same_folder_has_the_same_fingerprint_wherever_it_lies(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other") / "transformer"
    other.mkdir()
    for path in folder.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    assert base_fingerprint(folder) == base_fingerprint(other)


@pytest.mark.parametrize(
    ("name", "at"),
    [("config.json", 0), ("a.safetensors", 9), ("a.safetensors", -200), ("b.safetensors", 9), ("b.safetensors", -1)],
)
def test_flipped_bit_where_it_looks_is_another_base(folder: Path, name: str, at: int) -> None:
    before = base_fingerprint(folder)
    flip(folder / name, at)
    assert base_fingerprint(folder) != before


def test_file_that_was_cut_or_renamed_is_another_base(folder: Path) -> None:
    before = base_fingerprint(folder)
    (folder / "a.safetensors").rename(folder / "c.safetensors")
    renamed = base_fingerprint(folder)
    data = (folder / "b.safetensors").read_bytes()
    (folder / "b.safetensors").write_bytes(data[:-4])
    assert len({before, renamed, base_fingerprint(folder)}) == 3


def test_weights_changed_throughout_are_another_base(folder: Path) -> None:
    before = base_fingerprint(folder)
    safetensors.torch.save_file({"w": torch.full((LARGE,), 1e-3)}, folder / "b.safetensors")
    assert base_fingerprint(folder) != before


@pytest.mark.parametrize("optimizer", Optimizer)
def test_versions_name_the_package_of_the_optimizer(optimizer: Optimizer) -> None:
    package = {
        "PRODIGY": "prodigyopt",
        "ADAFACTOR": "transformers",
        "LION": "lion-pytorch",
        "ADAMW_SCHEDULE_FREE": "schedulefree",
        "ADAMW_8BIT": "bitsandbytes",
        "ADAMW": "torch",
    }[optimizer]
    assert versions(TrainConfig(optimizer=optimizer)).keys() >= {package, "fluxsmith", "torch", "peft", "diffusers"}
