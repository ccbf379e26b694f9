"""Read a folder of images with captions: `cat.png` with `cat.txt` beside it. Find every problem before sending any."""

import logging
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fluxsmith_text import is_blank, on_one_line

from fluxsmith._samples import NotText, SampleNames, caption_fault, decoded, length_fault, made_name
from fluxsmith.data import CaptionedImage
from fluxsmith.errors import InvalidFolder

_log = logging.getLogger("fluxsmith")

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".heic", ".heif", ".bmp", ".gif", ".tif", ".tiff"}
)
CAPTION_SUFFIX = ".txt"
# What systems leave in folders, besides names with a leading dot: nobody put it there, so nothing is said of it.
_OF_THE_SYSTEM = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini"})
_MAX_NAMED = 10
MOST_LOOKED_AT = 5000
"""Files and folders below, to tell where the images may be."""

OTHER_FORMAT = "file of another format"
NO_PICTURE = "caption without a picture"
BROKEN_LINK = "link that leads nowhere"
SUBFOLDER = "subfolder, which is not looked into"
HIDDEN = "hidden picture or caption"
SPECIAL = "entry that is neither file nor folder"
_SEVERAL = {
    OTHER_FORMAT: "files of other formats",
    NO_PICTURE: "captions without a picture",
    BROKEN_LINK: "links that lead nowhere",
    SUBFOLDER: "subfolders, which are not looked into",
    HIDDEN: "hidden pictures or captions",
    SPECIAL: "entries that are neither file nor folder",
}


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Something in a folder that is not trained on."""

    name: str
    """Its name in the folder, with what cannot be shown escaped."""
    why: str
    """What it is: `file of another format`, `caption without a picture`, `link that leads nowhere`, `subfolder, which
    is not looked into`, `hidden picture or caption` or `entry that is neither file nor folder`.
    """


class FolderImages(list[CaptionedImage]):
    """The images of a folder, and in `left_out` all else that is there, by name."""

    def __init__(self, images: Iterable[CaptionedImage], *, folder: Path, left_out: Sequence[LeftOut]) -> None:
        super().__init__(images)
        self._folder = folder
        self.left_out = tuple(left_out)

    @property
    def left_out_line(self) -> str:
        """How many are left out, which and why, in one line; empty for none."""
        if not self.left_out:
            return ""
        has_folders = any(entry.why == SUBFOLDER for entry in self.left_out)
        below = _count_below(self._folder) if has_folders else ""
        within = f"; subfolders hold {below}" if below else ""
        return f"left out of {_shown(str(self._folder))}: {_counted(self.left_out)}{within}"


def read_folder(folder: Path) -> FolderImages:
    """Return the images of the folder with their captions, by name. Folders within it are not looked into.

    What is no image with a caption is in `left_out`. An image that has no name that can be sent gets one of its own.
    Raises `InvalidFolder` naming all images at fault, up to ten of each kind.
    """
    images, captions, left_out = _sorted_out(_entries(folder))
    if not images:
        raise _empty(folder, left_out)
    faults, names = _Faults(), SampleNames()
    samples, used = [], set[Path]()
    for number, image in enumerate(images, start=1):
        files = captions.of(image)
        used.update(files)
        caption = _read_caption(image, files, faults)
        samples.append((image, caption, names.of(image.name, number)))
    left_out += [LeftOut(name=_shown(path.name), why=NO_PICTURE) for path in captions.paths if path not in used]
    left_out.sort(key=lambda entry: entry.name)
    faults.raise_if_any(folder, left_out)
    made = [CaptionedImage(path=path, captions=(caption,), name=name) for path, caption, name in samples]
    return FolderImages(made, folder=folder, left_out=left_out)


def warn_of_left_out(images: Sequence[CaptionedImage]) -> None:
    """Log what the folder of these images has beside them."""
    if isinstance(images, FolderImages) and images.left_out:
        _log.warning("%s", images.left_out_line)


def _entries(folder: Path) -> list[Path]:
    """Return everything in the folder, by name."""
    try:
        is_folder, is_there = folder.is_dir(), folder.exists()
    except PermissionError as error:
        raise _unreadable(folder, error) from error
    except OSError:  # such as a name that is too long
        is_folder = is_there = False
    if not is_folder:
        shown = _shown(str(folder))
        raise InvalidFolder(
            f"{shown} is not a folder." if is_there else f"the folder {shown} does not exist.",
            reason="FOLDER_NOT_FOUND",
            remedy="Name a folder that holds images with .txt captions of the same names.",
        )
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise _unreadable(folder, error) from error


class _Captions:
    """Caption files, found by the name of their image: the same, or written of other characters that look the same."""

    def __init__(self) -> None:
        self.paths: list[Path] = []
        self._exact: dict[str, list[Path]] = defaultdict(list)
        self._alike: dict[str, list[Path]] = defaultdict(list)

    def add(self, path: Path) -> None:
        self.paths.append(path)
        self._exact[path.stem].append(path)
        self._alike[_composed(path.stem)].append(path)

    def of(self, image: Path) -> list[Path]:
        return self._exact.get(image.stem) or self._alike.get(_composed(image.stem), [])


def _composed(stem: str) -> str:
    """Return the name with `é` as one character, which Macs and archives of theirs write as two."""
    return unicodedata.normalize("NFC", stem)


def _sorted_out(entries: Sequence[Path]) -> tuple[list[Path], _Captions, list[LeftOut]]:
    """Return the image files, the caption files, and what is neither."""
    images, captions, left_out = list[Path](), _Captions(), list[LeftOut]()
    for path in entries:
        why = _why_left_out(path)
        if why is None:
            continue
        if why:
            left_out.append(LeftOut(name=_shown(path.name), why=why))
        elif _is_image(path):
            images.append(path)
        else:
            captions.add(path)
    return images, captions, left_out


def _why_left_out(path: Path) -> str | None:
    """Return why an entry is left out, empty for an image or a caption, None for what nothing is to be said of."""
    is_sample = _is_image(path) or path.suffix.lower() == CAPTION_SUFFIX
    if path.name.startswith("."):
        # `._cat.png` is what macOS leaves on other disks.
        return HIDDEN if is_sample and not path.name.startswith("._") else None
    if path.name.lower() in _OF_THE_SYSTEM:
        return None
    try:
        is_link_to_nothing = path.is_symlink() and not path.exists()
        if path.is_dir():
            return SUBFOLDER
        is_special = not is_link_to_nothing and not path.is_file()
    except OSError:  # a link that leads to itself, or into a folder without access
        is_link_to_nothing, is_special = path.is_symlink(), True
    if is_link_to_nothing:
        return BROKEN_LINK
    return SPECIAL if is_special else "" if is_sample else OTHER_FORMAT


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _empty(folder: Path, left_out: Sequence[LeftOut]) -> InvalidFolder:
    formats = ", ".join(sorted(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES))
    message, wanted = (
        f"the folder {_shown(str(folder))} holds no images",
        "each with a caption in a .txt file.",
    )
    remedy = f"Put images ({formats}) into it, {wanted}"
    if below := _count_below(folder):
        message += f"; its subfolders hold {below}, but are not looked into"
        remedy = f"Name one of the subfolders, or put the images into the folder itself, {wanted}"
    others = [entry for entry in left_out if entry.why != SUBFOLDER or not below]
    if others:
        message += f"; there are {_counted(others)}"
    return InvalidFolder(f"{message}.", reason="FOLDER_EMPTY", remedy=remedy)


def _counted(left_out: Sequence[LeftOut]) -> str:
    """Return how many are left out for each reason, up to ten of them by name."""
    names: dict[str, list[str]] = defaultdict(list)
    for entry in left_out:
        names[entry.why].append(entry.name)
    return "; ".join(
        f"{len(names[why])} {several if len(names[why]) > 1 else why} ({name_some(names[why])})"
        for why, several in _SEVERAL.items()
        if why in names
    )


def _count_below(folder: Path) -> str:
    """Return how many images the subfolders hold, hidden ones left out; empty for none."""
    images = looked_at = 0
    for place, folders, files in os.walk(folder):  # links to folders are not followed
        folders[:] = [name for name in folders if not name.startswith(".")]
        if Path(place) != folder:
            images += sum(_is_image(Path(name)) and not name.startswith(".") for name in files)
        looked_at += 1 + len(files)
        if looked_at > MOST_LOOKED_AT:
            break
    count = f"{images} {'image' if images == 1 else 'images'}" if images else ""
    return f"at least {count}" if count and looked_at > MOST_LOOKED_AT else count


def _unreadable(folder: Path, error: OSError) -> InvalidFolder:
    message = f"the folder {_shown(str(folder))} cannot be read: {error.strerror}."
    return InvalidFolder(message, reason="FOLDER_UNREADABLE", remedy="Give yourself access to it.")


@dataclass(kw_only=True)
class _Faults:
    """Names of the images at fault, by what is wrong with them."""

    without_caption: list[str] = field(default_factory=list)
    with_several_captions: list[str] = field(default_factory=list)
    with_empty_caption: list[str] = field(default_factory=list)
    with_unreadable_caption: list[str] = field(default_factory=list)
    with_long_caption: list[str] = field(default_factory=list)
    with_bad_characters: list[str] = field(default_factory=list)
    without_bytes: list[str] = field(default_factory=list)
    without_access: list[str] = field(default_factory=list)

    def raise_if_any(self, folder: Path, left_out: Sequence[LeftOut]) -> None:
        found = [
            (self.without_caption, "without a caption file", "Write each caption into a .txt file of the same name."),
            (self.with_several_captions, "with several caption files", "Keep one caption file for each image."),
            (self.with_empty_caption, "with an empty caption", "Write a caption into each .txt file."),
            (self.with_unreadable_caption, "with a caption that is not UTF-8 text", "Save the captions as UTF-8."),
            (self.with_long_caption, "with a caption that is too long", "Shorten these captions."),
            (
                self.with_bad_characters,
                "with a caption that has a character no text may have",
                "Take these characters out of the captions.",
            ),
            (self.without_bytes, "with no content", "Replace or remove the empty image files."),
            (self.without_access, "that cannot be read", "Give yourself access to the image files."),
        ]
        problems = [
            f"{len(names)} {'image' if len(names) == 1 else 'images'} {text}: {name_some(names)}"
            for names, text, _ in found
            if names
        ]
        if problems:
            # A caption that looks forgotten may be that of an image without one.
            spare = [entry for entry in left_out if entry.why == NO_PICTURE]
            problems += [_counted(spare)] if self.without_caption and spare else []
            raise InvalidFolder(
                f"the folder {_shown(str(folder))} has {'; '.join(problems)}.",
                reason="FOLDER_INVALID",
                remedy=" ".join(remedy for names, _, remedy in found if names),
            )


def _read_caption(image: Path, files: Sequence[Path], faults: _Faults) -> str:
    """Return the caption, noting in `faults` what is wrong with the image or its caption."""
    name = _shown(image.name)
    _look_at(image, faults)
    if len(files) != 1:
        if files:
            faults.with_several_captions.append(f"{name} ({', '.join(_shown(path.name) for path in files)})")
        else:
            faults.without_caption.append(name)
        return ""
    try:
        caption = decoded(files[0].read_bytes()).strip()
    except OSError as error:
        faults.with_unreadable_caption.append(f"{name} ({error.strerror})")
        return ""
    except NotText as error:
        faults.with_unreadable_caption.append(f"{name} ({error})" if error.args else name)
        return ""
    if fault := length_fault(caption):
        faults.with_long_caption.append(f"{name} ({fault})")
    elif is_blank(caption):
        faults.with_empty_caption.append(f"{name} (invisible characters alone)" if caption else name)
    elif fault := caption_fault(caption):
        faults.with_bad_characters.append(f"{name} ({fault})")
    return caption


def _look_at(image: Path, faults: _Faults) -> None:
    """Note in `faults` what keeps the image from being sent."""
    try:
        if image.stat().st_size == 0:
            faults.without_bytes.append(_shown(image.name))
        elif not os.access(image, os.R_OK):
            faults.without_access.append(_shown(image.name))
    except OSError:  # it is gone, or what it links to
        faults.without_access.append(_shown(image.name))


def name_some(names: Sequence[str]) -> str:
    """Join up to ten names, then say how many more there are."""
    shown = ", ".join(names[:_MAX_NAMED])
    return f"{shown} and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else shown


def folder_name(folder: Path) -> str:
    """Return what to call a dataset made of the folder: its own name as text that can be sent; empty for the root."""
    try:
        # `Path.resolve` fails where links lead in a circle.
        return made_name(Path(os.path.realpath(folder)).name)
    except ValueError:  # no name has a zero byte
        return made_name(folder.name)


def _shown(name: str) -> str:
    return on_one_line(name)
