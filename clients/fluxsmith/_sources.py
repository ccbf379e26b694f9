"""Captioned images wherever they are, as what an upload takes. Every row at fault is found before any is sent."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from fluxsmith_text import quoted

from fluxsmith._folder import Skipping, folder_name, name_some, read_folder
from fluxsmith._pictures import Picture, PictureFault, ReadAgain, find_picture, is_file
from fluxsmith._samples import MOST_CAPTIONS, SampleNames, caption_fault, sample_faults, with_plain_lines
from fluxsmith._tables import READERS, Unparsed, read_file
from fluxsmith.data import CaptionedImage
from fluxsmith.errors import FieldViolation, InvalidSource

Row = tuple[Picture, str | Sequence[str]] | Mapping[str, Any] | CaptionedImage
"""An image with its caption, or up to 16 of them; a mapping has them under usual names."""
Source = str | PathLike[str] | Iterable[Row]
"""A folder, a JSONL or CSV file, rows, or a `datasets.Dataset`, which is one of mappings."""

IMAGE_COLUMNS = ("image", "file_name", "image_path", "image_file", "path", "file", "img", "picture")
CAPTION_COLUMNS = ("caption", "captions", "text", "description", "prompt")
_MAX_NAMED = 10


def read_source(
    source: Source, *, image_column: str = "", caption_column: str = "", of_folder: Skipping | None = None
) -> list[CaptionedImage]:
    """Return the source's images with their captions, in its order, each under a name of its own.

    A name is that of the image's file, or the number of its row. Raises `InvalidSource` naming all rows at fault, up to
    ten of them, and `InvalidFolder` as `read_folder` does, which is given `of_folder`.
    """
    columns = _Columns(image=image_column, caption=caption_column)
    if isinstance(source, str | PathLike):
        path = Path(source)
        if path.suffix.lower() not in READERS and is_file(path):
            raise _unknown_kind(f"the file {path}")
        if path.suffix.lower() in READERS:
            return _captioned(read_file(path), columns, folder=path.parent)
        return read_folder(path, **(of_folder or {}))
    if type(source).__module__.partition(".")[0] == "datasets":
        return _captioned_of_hub(source, columns)
    if isinstance(source, Mapping | bytes) or not isinstance(source, Iterable):
        raise _unknown_kind(_of_kind(source))
    return _captioned(enumerate(source, start=1), columns, folder=Path())


def source_name(source: Source) -> str:
    """Return what to call a dataset made of the source: the name of its file or folder, if it is one."""
    if not isinstance(source, str | PathLike):
        return ""
    path = Path(source)
    return folder_name(path.with_suffix("") if path.suffix.lower() in READERS else path)


@dataclass(frozen=True, kw_only=True)
class _Columns:
    """Names of the columns, empty where they are to be found."""

    image: str
    caption: str

    def of(self, row: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the image and the caption of a row; raises `InvalidSource`."""
        image = _column(self.image, IMAGE_COLUMNS, row, "image")
        return row[image], row[_column(self.caption, CAPTION_COLUMNS, row, "caption")]


def _column(named: str, usual: Sequence[str], there: Iterable[str], what: str) -> str:
    columns = list(there)
    found = [name for name in ([named] if named else usual) if name in columns]
    if found:
        return found[0]
    wanted = f"no column {quoted(named)}" if named else f"no column of {what}s: none of {', '.join(usual)}"
    raise InvalidSource(
        f"there is {wanted}; there are {', '.join(map(str, columns)) or 'none at all'}.",
        reason="COLUMN_NOT_FOUND",
        remedy=f"Name one of them with {what}_column.",
    )


def _captioned(rows: Iterable[tuple[int, object]], columns: _Columns, *, folder: Path) -> list[CaptionedImage]:
    """Return the rows as images with captions; `rows` have their numbers."""
    names = SampleNames()
    faults: list[tuple[int, PictureFault]] = []
    images = []
    for number, row in rows:
        try:
            images.append(_read_row(number, row, columns, folder, names))
        except PictureFault as fault:
            faults.append((number, fault))
        except InvalidSource as error:  # of its columns, where those of an earlier row were found
            if not images and not faults:
                raise
            faults.append((number, PictureFault(error.message.rstrip("."), "Give every row the same columns.")))
    if faults:
        raise _at_fault(faults, len(images) + len(faults))
    if not images:
        message, remedy = "there is no row to make a dataset of.", "Give at least one image with its caption."
        raise InvalidSource(message, reason="SOURCE_EMPTY", remedy=remedy)
    return images


def _read_row(number: int, row: object, columns: _Columns, folder: Path, names: SampleNames) -> CaptionedImage:
    match row:
        case CaptionedImage():
            return _checked(row, names)
        case Unparsed():
            raise PictureFault(row.problem, row.remedy)
        case Mapping():
            picture, caption = columns.of(row)
        case [picture, caption]:
            pass
        case _:
            raise PictureFault("it is not a pair of an image and a caption", "Give pairs as (image, caption).")
    captions = _read_captions(caption)
    found = find_picture(picture, folder)
    name = names.of(found.name, number)
    return CaptionedImage(path=found.path, content=found.content, captions=captions, name=name)


def _checked(image: CaptionedImage, names: SampleNames) -> CaptionedImage:
    """Return an image whose name the caller chose; raises `PictureFault`."""
    if faults := sample_faults(image.name, image.captions):
        raise PictureFault(", and ".join(faults), "Correct the name or caption.")
    if not names.claim(image.name):
        raise PictureFault(f"another row is called {quoted(image.name)} too", "Give each image a name of its own.")
    return image


_REMEDIES = {"is empty": "Write a caption for every image.", "is too long": "Shorten the caption."}
_REMEDY_OF_CHARACTERS = "Write the caption in whole, printable characters."


def _read_captions(caption: object) -> tuple[str, ...]:
    captions = [caption] if isinstance(caption, str) else caption
    if not isinstance(captions, Sequence) or not all(isinstance(text, str) for text in captions):
        raise PictureFault(f"the caption is of type {type(caption).__name__}", "Give each caption as text.")
    if not captions:
        raise PictureFault("the caption is empty", "Write a caption for every image.")
    if len(captions) > MOST_CAPTIONS:
        raise PictureFault(f"there are {len(captions)} captions", f"Give {MOST_CAPTIONS} captions at most.")
    whole = tuple(with_plain_lines(text).strip() for text in captions)
    for fault in filter(None, map(caption_fault, whole)):
        remedy = next((told for start, told in _REMEDIES.items() if fault.startswith(start)), _REMEDY_OF_CHARACTERS)
        raise PictureFault(f"the caption {fault}", remedy)
    return whole


def _at_fault(faults: Sequence[tuple[int, PictureFault]], row_count: int) -> InvalidSource:
    named = [f"row {number}: {fault.problem}" for number, fault in faults]
    remedies = dict.fromkeys(fault.remedy for _, fault in faults)
    return InvalidSource(
        f"{len(faults)} of {row_count} rows cannot become samples: {name_some(named)}.",
        reason="SOURCE_INVALID",
        remedy=" ".join(remedies),
        violations=tuple(
            FieldViolation(field=f"row {number}", description=fault.problem) for number, fault in faults[:_MAX_NAMED]
        ),
    )


def _of_kind(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in {*'aeiou'} else 'a'} {name}"


def _unknown_kind(what: str) -> InvalidSource:
    remedy = (
        "Give a folder, a .jsonl or .csv file, pairs of an image and a caption, or one split of a `datasets.Dataset` "
        "that is not streamed."
    )
    return InvalidSource(f"a dataset cannot be made of {what}.", reason="SOURCE_KIND_UNKNOWN", remedy=remedy)


def _captioned_of_hub(source: Any, columns: _Columns) -> list[CaptionedImage]:
    """Return the rows of a `datasets.Dataset`, whose images are read again as files when they are sent."""
    features = getattr(source, "features", None)
    if isinstance(source, Mapping) or not hasattr(source, "__len__") or not features:
        raise _unknown_kind(_of_kind(source))
    pictures = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    texts = [name for name, feature in features.items() if getattr(feature, "dtype", "") in {"string", "large_string"}]
    image = _column(columns.image, _usual_first(IMAGE_COLUMNS, pictures), features, "image")
    caption = _column(columns.caption, _usual_first(CAPTION_COLUMNS, texts), features, "caption")
    if image in pictures:  # the file as it is, rather than its pixels
        source = source.cast_column(image, type(features[image])(decode=False))
    captions = source.select_columns([caption])
    rows = (
        (index + 1, (ReadAgain(partial(_cell, source, index, image)), captions[index][caption]))
        for index in range(len(source))
    )
    return _captioned(rows, columns, folder=Path())


def _usual_first(usual: Sequence[str], of_kind: Sequence[str]) -> list[str]:
    """Return the names in question: usual ones of the right kind, then others of it, then usual ones of any kind."""
    return list(dict.fromkeys([*(name for name in usual if name in of_kind), *of_kind, *usual]))


def _cell(source: Any, index: int, column: str) -> object:
    return source[index][column]
