"""The README's example does what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from services.stack import ROOT, Stack


def test_the_example_of_the_readme_runs(stack: Stack, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    code = blocks[0].replace("steps=250", "steps=2").replace("assets/demo", f"{ROOT}/assets/demo")
    assert len([line for line in code.splitlines() if line.strip()]) <= 8
    addresses = {"FLUXSMITH_ENCODER": stack.encoder_address, "FLUXSMITH_TRAINER": stack.trainer_address}
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, **addresses},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert "succeeded" in process.stdout
    assert (tmp_path / "ink.safetensors").stat().st_size > 100_000
