"""Puts a LoRA file into the object store over HTTP, after a look at whether it is one."""

import hashlib
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request

from fluxsmith._http import opener, store_away
from fluxsmith.errors import InvalidRequest, UploadFailed

_LENGTH_BYTES = 8
_LARGEST_HEADER_BYTES = 100_000_000  # what the safetensors format allows
_LARGEST_BYTES = 5 * 1024**3  # what one PUT takes


def check_adapter(source: Path) -> None:
    """Raise `InvalidRequest` unless the file can be read, begins as safetensors does and can be put in one go."""
    try:
        size_bytes = source.stat().st_size
        with source.open("rb") as file:
            begin = file.read(_LENGTH_BYTES + 1)
    except OSError as error:
        raise _unreadable(source, error) from error
    header_bytes = int.from_bytes(begin[:_LENGTH_BYTES], "little")
    fits = _LENGTH_BYTES + header_bytes <= size_bytes and header_bytes <= _LARGEST_HEADER_BYTES
    if not fits or begin[_LENGTH_BYTES:] != b"{":
        message = f"{source} is not a safetensors file: its content does not begin like one."
        remedy = "Name a LoRA in the safetensors format; one that should be is damaged: export or download it again."
        raise InvalidRequest(message, reason="ADAPTER_INVALID", remedy=remedy)
    if size_bytes > _LARGEST_BYTES:
        message = f"{source} has {size_bytes} bytes; {_LARGEST_BYTES} can be uploaded."
        raise InvalidRequest(message, reason="ADAPTER_TOO_LARGE", remedy="Name a smaller LoRA file.")


def digest_of(source: Path) -> str:
    """Return the sha256 of the file's bytes as hexadecimal, or raise `InvalidRequest`."""
    try:
        with source.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(source, error) from error


def put_file(url: str, source: Path, *, stall_s: float = 60.0) -> None:
    """Send the file to `url`, read as it is sent.

    Raises `InvalidRequest` if it cannot be read, `Unavailable` if the store cannot be reached and `UploadFailed` if it
    says no.
    """
    try:
        with source.open("rb") as file:
            # Without its length it would go in chunks, which presigned addresses refuse.
            headers = {"Content-Length": str(source.stat().st_size), "Content-Type": "application/octet-stream"}
            request = Request(url, data=file, headers=headers, method="PUT")  # noqa: S310  # the trainer's own address
            opener(url).open(request, timeout=stall_s).close()
    except HTTPError as error:
        if error.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise store_away(url, again="upload") from error
        message = f"the object store refused {source}: {error.code} {error.reason}."
        raise UploadFailed(message, reason="UPLOAD_REFUSED", remedy="Upload it again.") from error
    except (URLError, HTTPException, ConnectionError, TimeoutError) as error:
        raise store_away(url, again="upload") from error
    except OSError as error:
        raise _unreadable(source, error) from error


def _unreadable(source: Path, error: OSError) -> InvalidRequest:
    message = f"{source} cannot be read: {error.strerror}."
    return InvalidRequest(message, reason="ADAPTER_UNREADABLE", remedy="Name a LoRA file that can be read.")
