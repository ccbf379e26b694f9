"""What `make demo` promises, in a shorter run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from diffusers import FluxPipeline
from PIL import Image

from demo.report import LABELS
from services.stack import ROOT


def test_the_demo_writes_what_it_promises(tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path / "out"), "--data", str(tmp_path / "data"), "--steps", "12"]
    process = subprocess.run(
        [sys.executable, "-m", "demo", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    out = tmp_path / "out"
    summary = json.loads((out / "summary.json").read_text())
    assert summary["steps"] == 12
    assert summary["heldout_loss_lora"] < summary["heldout_loss_base"]
    assert 1 < summary["heldout_loss_zero"] < 10  # noise alone is 1, and the latents of drawings are a few
    assert summary["lora_bytes"] == (out / "lora.safetensors").stat().st_size
    assert Image.open(out / "before_after.png").width > 800
    assert Image.open(out / "loss.png").width > 400
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert 'src="http' not in page
    assert set(summary) == set(LABELS)
    assert "held-out loss of the base" in page
    assert FluxPipeline.lora_state_dict(out / "lora.safetensors")
