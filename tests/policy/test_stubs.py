"""The checked-in stubs are those of the contract."""

from __future__ import annotations

import subprocess

from tests.policy.sources import ROOT


def test_stubs_are_fresh() -> None:
    process = subprocess.run([ROOT / "scripts/proto.sh", "--check"], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
