"""Where a command's file goes, checked before the work that makes it."""

import os
from pathlib import Path

from fluxsmith import _download
from fluxsmith.errors import InvalidRequest


def check_target(target: Path) -> None:
    """Raise `InvalidRequest` now for a file that could not be written once the work is done."""
    if target.is_dir() or not target.parent.is_dir():
        problem = "is a folder" if target.is_dir() else "is in a folder that does not exist"
        raise InvalidRequest(f"the output {target} {problem}.", reason="TARGET_UNWRITABLE", remedy="Name another file.")
    _download.check_target(target)
    if not os.access(target.parent, os.W_OK):
        message = f"the output {target} is in a folder that cannot be written."
        raise InvalidRequest(message, reason="TARGET_UNWRITABLE", remedy="Name another file.")
