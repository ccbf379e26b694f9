"""The services' own doctor: what it finds on this machine, and what it says of settings that cannot work."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest
import torch

from services import doctor
from services.stack import Stack


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BASE_MODEL", "STORE_ENDPOINT", "TRAINER_DATABASE_URL", "DEVICE"):
        monkeypatch.delenv(f"FLUXSMITH_{name}", raising=False)


def test_fresh_checkout_has_all_that_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    doctor.main(["--json", "--data", str(tmp_path)])
    states = {check["name"]: check["state"] for check in json.loads(capsys.readouterr().out)}
    needed = ("packages", "model", "memory of machine", "store", "database")
    assert {name: states[name] for name in needed} == dict.fromkeys(needed, "OK")


@pytest.mark.parametrize(
    ("cuda", "says"), [(None, "pip install torch=="), ("13.0", "built for CUDA 13.0: install a driver")]
)
def test_missing_gpu_is_told_with_what_lets_torch_find_one(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None, says: str
) -> None:
    monkeypatch.setenv("FLUXSMITH_DEVICE", "cpu")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert says in doctor.gpu().remedy


@pytest.mark.parametrize(
    ("variable", "value", "name", "says"),
    [
        ("FLUXSMITH_BASE_MODEL", "/nowhere", "model", "/nowhere"),
        ("FLUXSMITH_TRAINER_DATABASE_URL", "sqlite:////nowhere/jobs.sqlite", "database", "there is no folder"),
        ("FLUXSMITH_TRAINER_DATABASE_URL", "postgresql+psycopg://me:secret@127.0.0.1:1/x", "database", "***"),
        ("FLUXSMITH_STORE_ENDPOINT", "nonsense", "store", ""),
        ("FLUXSMITH_TRAINER_LEASE_S", "abc", "settings", "FLUXSMITH_TRAINER_LEASE_S"),
        ("FLUXSMITH_DEVICE", "cuda", "gpu", "torch finds none"),
        ("FLUXSMITH_DTYPE", "int3", "model", "FLUXSMITH_DTYPE"),
    ],
)
def test_setting_that_cannot_work_fails_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, name: str, says: str
) -> None:
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    [check] = [each for each in doctor.checks(data=tmp_path, ports={}) if each.name == name]
    assert check.state == doctor.FAIL
    assert says in check.found
    assert check.remedy
    assert "secret" not in check.found


def test_folder_without_weights_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in doctor.PARTS:
        (tmp_path / part).mkdir()
    monkeypatch.setenv("FLUXSMITH_BASE_MODEL", str(tmp_path))
    assert "no weights" in doctor.model().found


@pytest.mark.parametrize(
    ("part", "change", "says"),
    [
        ("vae", {"latent_channels": 32}, "vae of base model .* has latent_channels 32 .* not 16"),
        ("vae", b"{", "vae of base model .* has a config.json that is not JSON"),
        ("text_encoder", b"null", "text_encoder of base model .* has a config.json that holds no object"),
        ("text_encoder_2", {"model_type": None}, "text_encoder_2 of base model .* has model_type None"),
        ("text_encoder_2", {"d_model": 32}, "where its config.json asks for"),
    ],
)
def test_part_with_which_the_encoder_would_not_start_fails(
    base_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    change: dict[str, object] | bytes,
    says: str,
) -> None:
    for original in base_model.iterdir():
        (tmp_path / original.name).symlink_to(original)
    (tmp_path / part).unlink()
    (tmp_path / part).mkdir()
    for file in (base_model / part).iterdir():
        (tmp_path / part / file.name).symlink_to(file)
    config = tmp_path / part / "config.json"
    written = (
        change if isinstance(change, bytes) else json.dumps({**json.loads(config.read_bytes()), **change}).encode()
    )
    config.unlink()
    config.write_bytes(written)
    monkeypatch.setenv("FLUXSMITH_BASE_MODEL", str(tmp_path))
    [check] = [each for each in doctor.checks(data=tmp_path, ports={}) if each.name == "model"]
    assert check.state == doctor.FAIL
    assert re.search(says, check.found)
    assert "fetch or save that part anew" in check.remedy


def test_store_is_written_to_and_read(store_stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in store_stack.environment.items():
        if name.startswith("FLUXSMITH_STORE"):
            monkeypatch.setenv(name, value)
    assert doctor.store().state == doctor.OK


def test_port_of_another_program_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        check = doctor.port("encoder", taken.getsockname()[1])
    assert check.state == doctor.FAIL
    assert "--encoder-port" in check.remedy


def test_little_room_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LITTLE_DISK", 1e18)
    assert doctor.disk(tmp_path / "not" / "there").state == doctor.WARN
