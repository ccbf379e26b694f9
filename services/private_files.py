"""Files and folders that are their owner's alone."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import IO

UMASK = 0o077
LOOK_EVERY_S = 1.0


def private_folder(path: Path) -> Path:
    """Make a folder, or take all rights of others from one that is there; raises `OSError`."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)
    return path


def open_private(path: Path, mode: str) -> IO[bytes]:
    """Open a file for writing bytes; a new one is its owner's alone."""
    return open(path, mode, opener=lambda name, flags: os.open(name, flags, 0o600))


def tighten(path: Path) -> None:
    """Take all rights of others from a file, or a folder and everything in it; links and what is gone are left."""
    for found in _below(path):
        try:
            mode = found.lstat().st_mode
            if not stat.S_ISLNK(mode) and mode & UMASK:
                found.chmod(stat.S_IMODE(mode) & ~UMASK)
        except FileNotFoundError:
            continue


@contextmanager
def kept_private(folder: Path) -> Iterator[None]:
    """Tighten a folder every `LOOK_EVERY_S` seconds, for a program that gives its files a mode of its own choice.

    What cannot be tightened stays as it is until `tighten` is called for it, which raises.
    """
    ended = Event()

    def keep() -> None:
        while not ended.wait(LOOK_EVERY_S):
            with suppress(OSError):
                tighten(folder)

    thread = Thread(target=keep, name="private files", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _below(path: Path) -> Iterator[Path]:
    yield path
    if path.is_dir() and not path.is_symlink():
        for folder, folders, files in os.walk(path):
            yield from (Path(folder, name) for name in (*folders, *files))
