"""Each example runs as it is, with few steps, against one stack."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from services.stack import ROOT, Stack

EXAMPLES = ROOT / "clients/examples"
SCRIPTS = {
    "quickstart.py": "written: ink.safetensors",
    "from_csv.py": "LoRA at s3://",
    "from_pictures.py": "LoRA at s3://",
    "from_hugging_face.py": "LoRA at s3://",
    "async_many_jobs.py": "best: ",
    "watch_and_cancel.py": "written: stopped.safetensors",
    "pause_and_resume.py": "paused",
    "warm_start.py": "LoRA at s3://",
    "handle_errors.py": "nobody there: Unavailable",
}
"""What each prints towards its end."""


@pytest.fixture
def environment(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXSMITH_ENCODER", stack.encoder_address)
    monkeypatch.setenv("FLUXSMITH_TRAINER", stack.trainer_address)
    monkeypatch.setenv("STEPS", "2")


@pytest.mark.parametrize("name", SCRIPTS)
def test_example_runs(name: str, environment: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "pause_and_resume.py":
        monkeypatch.setenv("STEPS", "20")  # else it has ended before the pause
    command = [sys.executable, str(EXAMPLES / name)]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    assert SCRIPTS[name] in process.stdout


def test_every_example_is_run_and_listed() -> None:
    there = {path.name for path in EXAMPLES.glob("*.py")} - {"product_backend.py"}  # which tests/clients has
    assert there == set(SCRIPTS)
    index = (ROOT / "docs/examples.md").read_text()
    assert not [name for name in there | {"notebook.ipynb"} if f"../clients/examples/{name})" not in index]


def test_notebook_shows_losses_and_previews(environment: None, tmp_path: Path) -> None:
    notebook = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ()) if "data" in output]
    shown = [output.data.get("text/html", "") for output in outputs]
    assert any("succeeded" in html and "<svg" in html and "held-out loss" in html for html in shown)
    assert any(html.count("data:image/png;base64,") == 2 for html in shown)
