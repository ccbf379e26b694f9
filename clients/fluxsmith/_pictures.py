"""One picture in whatever form it comes: a path, bytes, base64 or a PIL image, made into what an upload reads."""

import base64
import binascii
import io
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import IO, Protocol, cast

from fluxsmith_text import quoted

# How files of the formats that the encoder reads begin.
_BEGINNINGS = {
    b"\x89PNG\r\n\x1a\n": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"GIF8": ".gif",
    b"BM": ".bmp",
    b"II*\0": ".tiff",
    b"MM\0*": ".tiff",
}
_HEAD_BYTES = 16
_MODES_OF_PNG = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"})
_SHOWN_CHARACTERS = 40
_ONE_COPY = threading.Lock()


class PilImage(Protocol):
    """What is used of a PIL image, which this library does not require."""

    @property
    def mode(self) -> str:
        """Kind of its pixels."""

    def save(self, fp: IO[bytes], format: str | None = None) -> None:  # noqa: A002  # PIL's own name
        """Write it as a file of that format."""


Picture = str | PathLike[str] | bytes | PilImage
"""A path, PIL image, the bytes of an image file, or those as base64, with or without `data:image/png;base64,`."""


@dataclass(frozen=True)
class ReadAgain:
    """A picture that is read once more when it is sent, so that few are in memory at a time."""

    read: Callable[[], object]

    def content(self) -> bytes:
        """Return the bytes of the image file."""
        content = find_picture(self.read(), Path()).content
        return content() if callable(content) else content or b""


class PictureFault(ValueError):
    """What is wrong with a picture, and the remedy."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy


@dataclass(frozen=True, kw_only=True)
class Found:
    """A picture as `CaptionedImage` takes it. `name` is its file's, or only a suffix where it has none."""

    path: Path | None = None
    content: bytes | Callable[[], bytes] | None = None
    name: str


def find_picture(picture: object, folder: Path) -> Found:
    """Return where the bytes of the picture are, paths being relative to the folder; raises `PictureFault`."""
    match picture:
        case str():
            found = _of_text(picture, folder)
        case ReadAgain():
            found = find_picture(picture.read(), folder)
            found = found if found.path else replace(found, content=picture.content)
        case bytes() | bytearray() | memoryview():
            found = _of_bytes(bytes(picture))
        case PathLike():
            found = _of_path(folder / Path(cast("PathLike[str]", picture)))
        case {"bytes": bytes() as content, **rest}:  # as a `datasets.Dataset` holds it
            found = _of_bytes(content, name=Path(str(rest.get("path") or "")).name)
        case {"path": str() as name}:
            found = _of_path(folder / name)
        case _ if hasattr(picture, "mode") and hasattr(picture, "save"):
            found = Found(content=partial(_as_png, cast("PilImage", picture)), name=".png")
        case _:
            remedy = "Give a path, a PIL image, the bytes of an image file, or those as base64."
            raise PictureFault(f"the image is of type {type(picture).__name__}", remedy)
    return found


def _of_text(text: str, folder: Path) -> Found:
    if text.startswith("data:"):
        content = _decoded(text.partition(",")[2])
        if content is None:
            raise PictureFault("the image is a data: address without base64", "Give `data:image/png;base64,...`.")
        return _of_bytes(content)
    if not text:
        raise PictureFault("the image is empty", "Name an image file, or leave the row out.")
    if text.startswith(("http://", "https://")):
        raise PictureFault(f"{quoted(_cut(text))} is an address", "Download the image first, and name its file.")
    if is_file(folder / text):
        return _of_path(folder / text)
    content = _decoded(text)
    if content and _known_suffix(content):  # many a name of a file that is not there is base64 of something
        return _of_bytes(content)
    remedy = (
        "Name files that are there, relative to the JSONL or CSV file or to the current folder; as base64, give the "
        "bytes of an image file."
    )
    raise PictureFault(f"{quoted(_cut(text))} is neither a file nor an image as base64", remedy)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def _of_bytes(content: bytes, *, name: str = "") -> Found:
    suffix = _suffix_of(content)
    return Found(content=content, name=name or suffix)


def _of_path(path: Path) -> Found:
    try:
        with path.open("rb") as file:
            _suffix_of(file.read(_HEAD_BYTES))
    except (OSError, ValueError) as error:  # no name has a zero byte
        problem = f"{path} cannot be read: {getattr(error, 'strerror', None) or error}"
        raise PictureFault(problem, "Name files that can be read.") from error
    return Found(path=path, name=path.name)


def is_file(path: Path) -> bool:
    """Whether there is a file of this name; no error for what cannot be a name."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # base64 is too long for a name
        return False


def _decoded(text: str) -> bytes | None:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return None


def _suffix_of(content: bytes) -> str:
    """Return the suffix of the format, or raise `PictureFault`."""
    if suffix := _known_suffix(content):
        return suffix
    problem = "the image is of no format that the encoder reads" if content else "the image is empty"
    raise PictureFault(problem, "Give PNG, JPEG, WebP, AVIF, HEIC, BMP, GIF or TIFF.")


def _known_suffix(content: bytes) -> str:
    head = content[:_HEAD_BYTES]
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return ".webp"
    if head[4:8] == b"ftyp":
        return ".avif" if head[8:11] == b"avi" else ".heic"
    return next((suffix for beginning, suffix in _BEGINNINGS.items() if head.startswith(beginning)), "")


def _as_png(image: PilImage) -> bytes:
    """Return the image as a PNG file, its orientation included; raises `OSError` if its pixels cannot be had."""
    buffer = io.BytesIO()
    try:
        # Streams of an upload may hold the same image, which PIL reads on demand and for one thread only.
        with _ONE_COPY:
            written = image.copy() if image.mode in _MODES_OF_PNG else image.convert("RGB")  # type: ignore[attr-defined]
            exif = image.getexif()  # type: ignore[attr-defined]
        written.save(buffer, "PNG", **({"exif": exif} if exif else {}))
    except (ValueError, SyntaxError, AttributeError) as error:  # what PIL raises for closed and broken files
        raise OSError(str(error)) from error
    return buffer.getvalue()
