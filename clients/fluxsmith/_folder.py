"""Read a folder of images with captions: `cat.png` with `cat.txt` beside it. Find every problem before sending any."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fluxsmith.data import CaptionedImage
from fluxsmith.errors import InvalidFolder

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".heic", ".heif", ".bmp", ".gif", ".tif", ".tiff"}
)
_MAX_NAMED = 10
MOST_LOOKED_AT = 5000
"""Files and folders below, to tell where the images may be."""


def read_folder(folder: Path) -> list[CaptionedImage]:
    """Return the images of the folder with their captions, by name. Folders within it are not looked into.

    Raises `InvalidFolder` naming all images at fault, up to ten of each kind.
    """
    images, caption_files = _list_folder(folder)
    if not images:
        raise _empty(folder)
    faults = _Faults()
    samples = []
    for image in images:
        caption = _read_caption(image, caption_files.get(image.stem), faults)
        samples.append(CaptionedImage(path=image, captions=(caption,), name=image.name))
    faults.raise_if_any(folder)
    return samples


def _list_folder(folder: Path) -> tuple[list[Path], dict[str, Path]]:
    """Return the image files, and the caption files by stem."""
    try:
        is_folder, is_there = folder.is_dir(), folder.exists()
    except PermissionError as error:
        raise _unreadable(folder, error) from error
    except OSError:  # such as a name that is too long
        is_folder = is_there = False
    if not is_folder:
        raise InvalidFolder(
            f"{folder} is not a folder." if is_there else f"the folder {folder} does not exist.",
            reason="FOLDER_NOT_FOUND",
            remedy="Name a folder that holds images with .txt captions of the same names.",
        )
    try:
        # Names with a leading dot are the system's own, such as the `._cat.png` that macOS leaves on other disks.
        files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError as error:
        raise _unreadable(folder, error) from error
    images = [path for path in files if _is_image(path)]
    return images, {path.stem: path for path in files if path.suffix.lower() == ".txt"}


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _empty(folder: Path) -> InvalidFolder:
    formats = ", ".join(sorted(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES))
    message, wanted = f"the folder {folder} holds no images", "each with a caption in a .txt file of the same name."
    remedy = f"Put images ({formats}) into it, {wanted}"
    if below := _count_below(folder):
        message += f"; its subfolders hold {below}, but are not looked into"
        remedy = f"Name one of the subfolders, or put the images into the folder itself, {wanted}"
    return InvalidFolder(f"{message}.", reason="FOLDER_EMPTY", remedy=remedy)


def _count_below(folder: Path) -> str:
    """Return how many images the subfolders hold, hidden ones left out; empty for none."""
    images = looked_at = 0
    for _, folders, files in os.walk(folder):  # links to folders are not followed
        folders[:] = [name for name in folders if not name.startswith(".")]
        images += sum(_is_image(Path(name)) and not name.startswith(".") for name in files)
        looked_at += 1 + len(files)
        if looked_at > MOST_LOOKED_AT:
            break
    count = f"{images} {'image' if images == 1 else 'images'}" if images else ""
    return f"at least {count}" if count and looked_at > MOST_LOOKED_AT else count


def _unreadable(folder: Path, error: OSError) -> InvalidFolder:
    message = f"the folder {folder} cannot be read: {error.strerror}."
    return InvalidFolder(message, reason="FOLDER_UNREADABLE", remedy="Give yourself access to it.")


@dataclass(kw_only=True)
class _Faults:
    """Names of the images at fault, by what is wrong with them."""

    without_caption: list[str] = field(default_factory=list)
    with_empty_caption: list[str] = field(default_factory=list)
    with_unreadable_caption: list[str] = field(default_factory=list)
    without_bytes: list[str] = field(default_factory=list)
    with_unreadable_name: list[str] = field(default_factory=list)

    def raise_if_any(self, folder: Path) -> None:
        found = [
            (self.without_caption, "without a caption file", "Write each caption into a .txt file of the same name."),
            (self.with_empty_caption, "with an empty caption", "Write a caption into each .txt file."),
            (self.with_unreadable_caption, "with a caption that is not UTF-8 text", "Save the captions as UTF-8."),
            (self.without_bytes, "with no content", "Replace or remove the empty image files."),
            (self.with_unreadable_name, "with a name that is not UTF-8", "Rename these files."),
        ]
        problems = [
            f"{len(names)} {'image' if len(names) == 1 else 'images'} {text}: {name_some(names)}"
            for names, text, _ in found
            if names
        ]
        if problems:
            raise InvalidFolder(
                f"the folder {folder} has {'; '.join(problems)}.",
                reason="FOLDER_INVALID",
                remedy=" ".join(remedy for names, _, remedy in found if names),
            )


def _read_caption(image: Path, caption_file: Path | None, faults: _Faults) -> str:
    """Return the caption, noting in `faults` what is wrong with the image or its caption."""
    name = _as_text(image.name)
    if name != image.name:
        faults.with_unreadable_name.append(name)
    elif image.stat().st_size == 0:
        faults.without_bytes.append(name)
    if caption_file is None:
        faults.without_caption.append(name)
        return ""
    try:
        caption = caption_file.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError):
        faults.with_unreadable_caption.append(name)
        return ""
    if not caption:
        faults.with_empty_caption.append(name)
    return caption


def name_some(names: Sequence[str]) -> str:
    """Join up to ten names, then say how many more there are."""
    shown = ", ".join(names[:_MAX_NAMED])
    return f"{shown} and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else shown


def folder_name(folder: Path) -> str:
    """Return what to call a dataset made of the folder: the folder's own name, as text that can be sent."""
    return _as_text(folder.resolve().name)[:200]


def _as_text(name: str) -> str:
    """Return the name as UTF-8 can hold it: Python stands surrogates in for bytes on disk that are not UTF-8."""
    return name.encode(errors="replace").decode()
