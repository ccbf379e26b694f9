"""The first examples of the README and of the client's page do what they say."""

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


def test_the_first_examples_of_the_clients_page_run(stack: Stack, tmp_path: Path) -> None:
    text = (ROOT / "docs/client.md").read_text().replace("steps=250", "steps=2").replace("assets/", f"{ROOT}/assets/")
    training, drawing = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[:2]
    addresses = {"FLUXSMITH_ENCODER": stack.encoder_address, "FLUXSMITH_TRAINER": stack.trainer_address}
    for code in (training, drawing):
        command, environment = [sys.executable, "-c", code], {**os.environ, **addresses}
        process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert process.returncode == 0, process.stderr
        assert code is drawing or re.search(r"held-out loss: best .*predicting nothing \d\.\d+", process.stdout)
    assert (tmp_path / "shark.png").stat().st_size > 1000
