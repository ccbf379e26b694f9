"""Fetches a file over HTTP, goes on where an earlier try broke off, checks it, and only then gives it its name."""

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError, URLError
from urllib.request import Request

try:
    import fcntl
except ImportError:  # on Windows, where two downloads to one target at a time may still disturb each other
    fcntl = None  # type: ignore[assignment]

from fluxsmith._http import opener, store_away
from fluxsmith.errors import DownloadFailed, InvalidRequest

_CHUNK_BYTES = 1024 * 1024
_LONGEST_NAME_BYTES = 200  # of the 255 that file systems take; a part's has the digest beside it
# Opened so, a file is made or stays as it is, and a link is not followed.
_KEEPING = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
_LOCK_POLL_S = 0.05


def part_of(target: Path, digest: str) -> Path:
    """Return where the file is until it is whole: in the same folder, since only there it is renamed in one step.

    Its name tells its content, so two downloads at a time that share it write the same bytes at the same places.
    """
    name = os.fsencode(target.name)
    if len(name) > _LONGEST_NAME_BYTES:
        name = hashlib.sha256(name).hexdigest().encode()
    return target.parent / f".{os.fsdecode(name)}.{digest[:16]}.part"


def check_target(target: Path) -> None:
    """Raise `InvalidRequest` for what no file can be put in the place of, before anything is fetched.

    That a file is replaced would take a device away from the whole machine: `/dev/null` for root.
    """
    try:
        problem = "" if target.is_file() or not target.exists() else "it is no file"
        if target.is_symlink():  # such as /dev/stdout
            problem = "it is a link; name what it leads to"
        if "\0" in str(target) or not target.name:
            problem = "that is no name for a file"
    except OSError as error:
        problem = error.strerror or str(error)
    if problem:
        raise _unwritable(target, problem)


def download(
    stop: threading.Event, url: str, target: Path, *, size_bytes: int, digest: str, stall_s: float = 60.0
) -> None:
    """Write what `url` answers to `target`, replacing it, if it has the given size and sha256.

    What has come stays beside the target when the connection breaks or `stop` is set, and only the rest is asked for
    the next time. Raises `InvalidRequest` if the target cannot be written, `Unavailable` if the store cannot be reached
    or breaks off and `DownloadFailed` for anything else that came back.
    """
    check_target(target)
    part = part_of(target, digest)
    try:
        with _opened_alone(stop, part) as file:
            if not stop.is_set():
                _complete(stop, url, file, part, target, size_bytes=size_bytes, digest=digest, stall_s=stall_s)
    except HTTPError as error:
        if error.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise store_away(url, again="download") from error
        message = f"the object store refused the file for {target}: {error.code} {error.reason}."
        raise DownloadFailed(message, reason="DOWNLOAD_REFUSED", remedy="Download it again.") from error
    except (URLError, HTTPException, ConnectionError, TimeoutError) as error:
        raise store_away(url, again="download") from error
    except OSError as error:
        if holds(target, size_bytes=size_bytes, digest=digest):
            return  # another download of it was first
        with suppress(OSError):
            part.unlink()
        raise _unwritable(target, error.strerror or str(error)) from error


def _complete(
    stop: threading.Event,
    url: str,
    file: BinaryIO,
    part: Path,
    target: Path,
    *,
    size_bytes: int,
    digest: str,
    stall_s: float,
) -> None:
    """Fetch what the part lacks and put it in place of the target; what nobody can use is removed."""
    whole, got_bytes = holds(target, size_bytes=size_bytes, digest=digest), 0
    if whole:  # another download of it was first
        _remove(part, file)
        return
    try:
        for _ in range(2):  # what an earlier try left may be damaged; what comes anew is not tried again
            resumed = _fetch(stop, url, file, size_bytes=size_bytes, stall_s=stall_s)
            if stop.is_set():
                return
            whole, got_bytes = holds(part, size_bytes=size_bytes, digest=digest), file.tell()
            if whole or not resumed:
                break
            file.truncate(0)
    except HTTPError as error:
        if error.code < HTTPStatus.INTERNAL_SERVER_ERROR:
            _remove(part, file)
        raise
    if whole:
        _close_on_windows(file)
        part.replace(target)
        return
    _remove(part, file)
    message = f"the file for {target} came as {got_bytes} of {size_bytes} bytes, or with other content."
    raise DownloadFailed(message, reason="DIGEST_MISMATCH", remedy="Download it again.")


def _remove(part: Path, file: BinaryIO) -> None:
    _close_on_windows(file)
    part.unlink(missing_ok=True)


def _close_on_windows(file: BinaryIO) -> None:
    """Where there are no locks to keep; there no open file is renamed or removed."""
    if fcntl is None:
        file.close()


@contextmanager
def _opened_alone(stop: threading.Event, part: Path) -> Iterator[BinaryIO]:
    """Open the part once no other download writes it; unless `stop` is set, which ends the wait."""
    while True:
        with os.fdopen(os.open(part, _KEEPING, 0o666), "r+b") as file:
            if stop.is_set() or (_lock(file) and _is_at(file, part)):
                yield file
                return
        stop.wait(_LOCK_POLL_S)


def _lock(file: BinaryIO) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _is_at(file: BinaryIO, part: Path) -> bool:
    """Whether the open file is still called that, and not put in place meanwhile by another download."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), part.stat())
    except FileNotFoundError:
        return False


def _unwritable(target: Path, problem: str) -> InvalidRequest:
    message = f"{target} cannot be written: {problem}."
    return InvalidRequest(message, reason="TARGET_UNWRITABLE", remedy="Name a file that can be written.")


def _fetch(stop: threading.Event, url: str, file: BinaryIO, *, size_bytes: int, stall_s: float) -> bool:
    """Add to the file what it has not yet of what the address answers; return whether it had something before."""
    had_bytes = file.seek(0, os.SEEK_END)
    if had_bytes >= size_bytes:
        return True  # whole, or not a part of this at all: its digest tells
    request = Request(url, headers={"Range": f"bytes={had_bytes}-"} if had_bytes else {})  # noqa: S310  # the service's
    with opener(url).open(request, timeout=stall_s) as response:
        if response.status != HTTPStatus.PARTIAL_CONTENT:
            file.seek(0)
        while not stop.is_set() and (chunk := _read(response)):
            file.write(chunk)
    file.flush()
    os.fsync(file.fileno())
    if not stop.is_set() and file.tell() < size_bytes:  # which is no error of `read` in every version of Python
        raise ConnectionError("the answer ended early")
    return had_bytes > 0


def _read(response: BinaryIO) -> bytes:
    """Return the next bytes; what fails is the connection, whatever kind of `OSError` it is, and not the disk."""
    try:
        return response.read(_CHUNK_BYTES)
    except OSError as error:
        raise ConnectionError(str(error)) from error


def holds(path: Path, *, size_bytes: int, digest: str) -> bool:
    """Whether the file is there already with this size and sha256."""
    try:
        if path.stat().st_size != size_bytes:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == digest
    except OSError:
        return False


def target_in(folder: Path, artifact_name: str) -> Path:
    """Return where in the folder a file of a job belongs; raises `DownloadFailed` for a name that leads out of it."""
    parts = artifact_name.split("/")
    if not all(parts) or {".", ".."} & set(parts) or any(character in artifact_name for character in "\\:\0"):
        message = f"the service tells of a file {artifact_name!r}, which is not a name for a file in a folder."
        raise DownloadFailed(message, reason="ARTIFACT_NAME_UNSAFE", remedy="Fetch it alone, under another name.")
    return folder.joinpath(*parts)


def make_folder(folder: Path) -> None:
    """Make the folder if it is missing, or raise `InvalidRequest`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message, remedy = f"the folder {folder} cannot be made: {error.strerror}.", "Name a folder that can be written."
        raise InvalidRequest(message, reason="TARGET_UNWRITABLE", remedy=remedy) from error
