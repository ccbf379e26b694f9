"""What every test may use. Nothing heavy is imported here: tests of the client library start without torch."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

# Before torch is imported: threads that spin while they wait take the few cores from the servers under test.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Whoever runs the tests in the background has had Ctrl-C ignored, and programs under test would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def base_model() -> Path:
    """The folder of the base model: FLUXSMITH_BASE_MODEL, or flux-tiny."""
    return Path(os.environ.get("FLUXSMITH_BASE_MODEL", ROOT / "assets" / "flux-tiny")).resolve()
