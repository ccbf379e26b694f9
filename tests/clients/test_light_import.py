"""Importing the library is quick to do and drags nothing heavy along."""

import subprocess
import sys


def test_import_loads_no_heavy_package_and_no_terminal_library() -> None:
    code = "import sys, fluxsmith; print(*(name for name in sys.modules if '.' not in name))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(loaded.stdout.split()) & {"torch", "numpy", "PIL", "diffusers", "transformers", "rich", "typer"}
