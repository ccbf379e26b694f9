"""Read a folder of images with captions: `cat.png` with `cat.txt` beside it. Find every problem before sending any."""

import logging
import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from fluxsmith_text import is_blank, on_one_line

from fluxsmith._samples import NotText, SampleNames, caption_fault, decoded, length_fault, made_name
from fluxsmith.data import CaptionedImage
from fluxsmith.encoding import EncodingOptions
from fluxsmith.errors import LEAVE_OUT, InvalidFolder

_log = logging.getLogger("fluxsmith")

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".heic", ".heif", ".bmp", ".gif", ".tif", ".tiff"}
)
CAPTION_SUFFIX = ".txt"
_TABLES = frozenset({".jsonl", ".csv"})
_TABLES_READ = 'Python reads tables of captions: client.datasets.create_from("captions.csv").'
# What systems leave in folders, besides names with a leading dot: nobody put it there, so nothing is said of it.
_OF_THE_SYSTEM = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini"})
_MAX_NAMED = 10
MOST_LOOKED_AT = 5000
"""Files and folders below, to tell where the images may be."""

OTHER_PICTURES = frozenset(
    {".jp2", ".j2k", ".jxl", ".tga", ".psd", ".xcf", ".svg", ".exr", ".hdr", ".dds", ".pcx", ".ico", ".ppm", ".pgm"}
    | {".pnm", ".dng", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2", ".jpe"}
)

OTHER_FORMAT = "file of another format"
NO_PICTURE = "caption without a picture"
BROKEN_LINK = "link that leads nowhere"
SUBFOLDER = "subfolder, which is not looked into"
HIDDEN = "hidden picture or caption"
SPECIAL = "entry that is neither file nor folder"
NO_CAPTION = "image without a caption file"
SEVERAL_CAPTIONS = "image with several caption files"
CAPTION_EMPTY = "image with an empty caption"
CAPTION_NO_TEXT = "image with a caption that is not UTF-8 text"
CAPTION_LONG = "image with a caption that is too long"
CAPTION_CHARACTERS = "image with a caption that has a character no text may have"
NO_CONTENT = "image with no content"
UNREADABLE = "image that cannot be read"
_REMEDIES = {
    NO_CAPTION: "Write each caption into a .txt file of the same name.",
    SEVERAL_CAPTIONS: "Keep one caption file for each image.",
    CAPTION_EMPTY: "Write a caption into each .txt file.",
    CAPTION_NO_TEXT: "Save the captions as UTF-8.",
    CAPTION_LONG: "Shorten these captions.",
    CAPTION_CHARACTERS: "Take these characters out of the captions.",
    NO_CONTENT: "Replace or remove the empty image files.",
    UNREADABLE: "Give yourself access to the image files.",
}
"""Of each fault of an image."""
_SEVERAL = {
    **{why: f"images{why.removeprefix('image')}" for why in _REMEDIES},
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
    is not looked into`, `hidden picture or caption` or `entry that is neither file nor folder`. Where bad samples are
    skipped also `image` and its fault: `image without a caption file`, `image with an empty caption`.
    """
    detail: str = ""
    """More on the fault, such as `Permission denied`."""


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


def read_folder(folder: Path, *, skip_bad_samples: bool = False, max_bad_share: float = 1.0) -> FolderImages:
    """Return the images of the folder with their captions, by name. Folders within it are not looked into.

    What is no image with a caption is in `left_out`. An image that has no name that can be sent gets one of its own.
    Raises `InvalidFolder` naming all images at fault, up to ten of each kind. With `skip_bad_samples` they are left out
    instead, unless they are all there are or more than `max_bad_share` of the images.
    """
    found = _sorted_out(_entries(folder))
    if not found.images:
        raise _empty(folder, found.left_out)
    faults, names = list[LeftOut](), SampleNames()
    samples, used = list[CaptionedImage](), set[Path]()
    for number, image in enumerate(found.images, start=1):
        files = found.captions.of(image)
        used.update(files)
        known = len(faults)
        caption = _read_caption(image, files, faults)
        name = names.of(image.name, number)
        if len(faults) == known:
            samples.append(CaptionedImage(path=image, captions=(caption,), name=name))
    for picture in found.other_pictures:
        used.update(found.captions.of(picture))
    spare = [LeftOut(name=_shown(path.name), why=NO_PICTURE) for path in found.captions.paths if path not in used]
    if faults:
        bad_count = len(found.images) - len(samples)
        if not (skip_bad_samples and samples and bad_count <= max_bad_share * len(found.images)):
            most = max_bad_share if skip_bad_samples and samples else None
            raise _invalid(folder, faults, spare, found.left_out, skipping=skip_bad_samples, most=most)
    left_out = sorted([*found.left_out, *spare, *faults], key=lambda entry: entry.name)
    return FolderImages(samples, folder=folder, left_out=left_out)


def _invalid(
    folder: Path,
    faults: Sequence[LeftOut],
    spare: Sequence[LeftOut],
    others: Sequence[LeftOut],
    *,
    skipping: bool,
    most: float | None,
) -> InvalidFolder:
    problems = [_counted([fault for fault in faults if fault.why == why], "{}: {}") for why in _REMEDIES]
    # A caption that looks forgotten may be that of an image without one.
    if spare and any(fault.why == NO_CAPTION for fault in faults):
        problems.append(_counted(spare))
    remedies = [remedy for why, remedy in _REMEDIES.items() if any(fault.why == why for fault in faults)]
    if NO_CAPTION in {fault.why for fault in faults} and (tables := [each.name for each in others if _is_table(each)]):
        problems.append(f"captions may be in {name_some(tables)}")
        remedies.append(_TABLES_READ)
    allowed = "" if most is None else f"; at most a share of {most:g} may be left out"
    return InvalidFolder(
        f"the folder {_shown(str(folder))} has {'; '.join(filter(None, problems))}{allowed}.",
        reason="FOLDER_INVALID",
        remedy=" ".join([*remedies, *([] if skipping else [LEAVE_OUT])]),
    )


class Skipping(TypedDict, total=False):
    """Keywords of `read_folder`."""

    skip_bad_samples: bool
    max_bad_share: float


def skipping(options: EncodingOptions) -> Skipping:
    """Return what the options say of images at fault."""
    most = 1.0 if options.max_bad_share is None else options.max_bad_share
    return Skipping(skip_bad_samples=bool(options.skip_bad_samples), max_bad_share=most)


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
        remedy = "Name a folder that holds images with .txt captions of the same names."
        raise InvalidFolder(
            f"{shown} is not a folder." if is_there else f"the folder {shown} does not exist.",
            reason="FOLDER_NOT_FOUND",
            remedy=f"{remedy} {_TABLES_READ}" if is_there and folder.suffix.lower() in _TABLES else remedy,
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


@dataclass(kw_only=True)
class _Found:
    """All that is in a folder and worth a word."""

    images: list[Path] = field(default_factory=list)
    captions: _Captions = field(default_factory=_Captions)
    other_pictures: list[Path] = field(default_factory=list)
    """Those of the left out whose captions need no word of their own."""
    left_out: list[LeftOut] = field(default_factory=list)


def _sorted_out(entries: Sequence[Path]) -> _Found:
    """Return the image files, the caption files, and what is neither."""
    found = _Found()
    for path in entries:
        why = _why_left_out(path)
        if why is None:
            continue
        if why:
            found.left_out.append(LeftOut(name=_shown(path.name), why=why))
            if why != SUBFOLDER and (_is_image(path) or path.suffix.lower() in OTHER_PICTURES):
                found.other_pictures.append(path)
        elif _is_image(path):
            found.images.append(path)
        else:
            found.captions.add(path)
    return found


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


def _counted(left_out: Sequence[LeftOut], form: str = "{} ({})") -> str:
    """Return how many are left out for each reason, up to ten of them by name."""
    names: dict[str, list[str]] = defaultdict(list)
    for entry in left_out:
        names[entry.why].append(f"{entry.name} ({entry.detail})" if entry.detail else entry.name)
    return "; ".join(
        form.format(f"{len(names[why])} {several if len(names[why]) > 1 else why}", name_some(names[why]))
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


def _read_caption(image: Path, files: Sequence[Path], faults: list[LeftOut]) -> str:
    """Return the caption, noting in `faults` what is wrong with the image or its caption."""
    note = _noting(image, faults)
    _look_at(image, note)
    if len(files) != 1:
        note(*((SEVERAL_CAPTIONS, ", ".join(_shown(path.name) for path in files)) if files else (NO_CAPTION, "")))
        return ""
    try:
        caption = decoded(files[0].read_bytes()).strip()
    except OSError as error:
        note(CAPTION_NO_TEXT, error.strerror or "")
        return ""
    except NotText as error:
        note(CAPTION_NO_TEXT, str(error))
        return ""
    if fault := length_fault(caption):
        note(CAPTION_LONG, fault)
    elif is_blank(caption):
        note(CAPTION_EMPTY, "invisible characters alone" if caption else "")
    elif fault := caption_fault(caption):
        note(CAPTION_CHARACTERS, fault)
    return caption


def _is_table(entry: LeftOut) -> bool:
    return entry.why == OTHER_FORMAT and Path(entry.name).suffix.lower() in _TABLES


def _noting(image: Path, faults: list[LeftOut]) -> Callable[[str, str], None]:
    return lambda why, detail: faults.append(LeftOut(name=_shown(image.name), why=why, detail=detail))


def _look_at(image: Path, note: Callable[[str, str], None]) -> None:
    """Note what keeps the image from being sent."""
    try:
        if image.stat().st_size == 0:
            note(NO_CONTENT, "")
        else:
            image.open("rb").close()  # os.access would answer for the real user, who need not be the one that reads
    except OSError:  # no rights, or it is gone, or what it links to
        note(UNREADABLE, "")


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
