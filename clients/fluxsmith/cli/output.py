"""Where a command's file goes, checked before the work that makes it."""

import os
from pathlib import Path

from fluxsmith_text import on_one_line

from fluxsmith import _download
from fluxsmith.errors import InvalidRequest

_LONGEST_STEM_BYTES = 200
"""Of the 255 that file systems take for a name."""


def check_target(target: Path) -> None:
    """Raise `InvalidRequest` now for a file that could not be written once the work is done."""
    if problem := _problem(target):
        message = f"the output {on_one_line(str(target))} {problem}."
        raise InvalidRequest(message, reason="TARGET_UNWRITABLE", remedy="Name another file.")
    _download.check_target(target)


def output_file(text: str) -> Path:
    """Return the file that a command was given; raises `InvalidRequest` for a folder, told by its slash, not there."""
    target = Path(text)
    if text.endswith(tuple(filter(None, (os.sep, os.altsep)))) and not _is_there(target):
        message = f"the output {on_one_line(text)} is in a folder that does not exist."
        raise InvalidRequest(message, reason="TARGET_UNWRITABLE", remedy="Name a file, without a slash at its end.")
    return target


def _is_there(target: Path) -> bool:
    try:
        return target.exists()
    except OSError:  # such as a name that is too long, which `check_target` tells
        return True


def _problem(target: Path) -> str:
    """Return what keeps the file from being written; empty for nothing."""
    try:
        if target.is_dir():
            return "is a folder"
        if not target.parent.is_dir():
            there = target.parent.exists()
            return "is in something that is no folder" if there else "is in a folder that does not exist"
        os.lstat(target)
    except FileNotFoundError:
        pass
    except OSError as error:  # such as a name that is too long, or a folder without access
        return f"cannot be written: {error.strerror}"
    return "" if os.access(target.parent, os.W_OK | os.X_OK) else "is in a folder that cannot be written"


def with_suffix(target: Path, suffix: str) -> Path:
    """Return the file with the suffix by which programs find it, unless it has it, or is there and is no file."""
    try:
        is_other = target.exists() and not target.is_file()
    except OSError:  # such as a name that is too long, which `check_target` tells
        is_other = True
    if is_other or not target.name or target.name.lower().endswith(suffix):
        return target
    return target.with_name(f"{target.name}{suffix}")


def default_target(name: str, ending: str) -> Path:
    """Return the file, here, for something of that name, however long that is."""
    stem = name.encode()[:_LONGEST_STEM_BYTES].decode(errors="ignore") or "fluxsmith"
    return Path(f"{stem}{ending}")
