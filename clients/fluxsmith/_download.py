"""Fetches a file over HTTP, checks it, and only then gives it its name."""

import hashlib
import os
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO, cast
from urllib.error import HTTPError, URLError
from uuid import uuid4

from fluxsmith._http import STALL_S, opener, store_away
from fluxsmith.errors import DownloadFailed, InvalidRequest

_CHUNK_BYTES = 1024 * 1024


def download(url: str, target: Path, *, size_bytes: int, digest: str) -> None:
    """Write what `url` answers to `target`, replacing it, if it has the given size and sha256.

    Raises `InvalidRequest` if the target cannot be written, `Unavailable` if the store cannot be reached and
    `DownloadFailed` for anything else that came back.
    """
    # In the same folder, since only there can it be renamed in one step.
    partial = target.with_name(f".{target.name}.{uuid4().hex[:8]}.part")
    try:
        with partial.open("xb") as file:
            got_bytes, got_digest = _fetch(url, file)
        if (got_bytes, got_digest) != (size_bytes, digest):
            message = f"the file for {target} came as {got_bytes} of {size_bytes} bytes, or with other content."
            raise DownloadFailed(message, reason="DIGEST_MISMATCH", remedy="Download it again.")
        partial.replace(target)
    except HTTPError as error:
        message = f"the object store refused the file for {target}: {error.code} {error.reason}."
        raise DownloadFailed(message, reason="DOWNLOAD_REFUSED", remedy="Download it again.") from error
    except (URLError, HTTPException, ConnectionError, TimeoutError) as error:
        raise store_away(url, again="download") from error
    except OSError as error:
        message = f"{target} cannot be written: {error.strerror}."
        raise InvalidRequest(message, reason="TARGET_UNWRITABLE", remedy="Name a file that can be written.") from error
    finally:
        partial.unlink(missing_ok=True)


def _fetch(url: str, file: BinaryIO) -> tuple[int, str]:
    """Copy what the address answers to the file; return how many bytes came and their sha256."""
    digest = hashlib.sha256()
    with opener(url).open(url, timeout=STALL_S) as response:
        while chunk := cast("bytes", response.read(_CHUNK_BYTES)):
            digest.update(chunk)
            file.write(chunk)
    file.flush()
    os.fsync(file.fileno())
    return file.tell(), digest.hexdigest()


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
        message = f"the service tells of a file {artifact_name!r}, which is no name for a file in a folder."
        raise DownloadFailed(message, reason="ARTIFACT_NAME_UNSAFE", remedy="Fetch it alone, under another name.")
    return folder.joinpath(*parts)
