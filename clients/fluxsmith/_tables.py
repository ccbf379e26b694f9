"""Rows of a JSONL or CSV file, as people and their programs write them: any mark of its encoding, `,` `;` or tabs."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from fluxsmith_text import on_one_line

from fluxsmith._samples import encoding_of
from fluxsmith.errors import InvalidSource

_JSONL_EXAMPLE = '{"image": "cat.png", "caption": "a cat"}'
_DELIMITERS = ",;\t"
_HEAD_BYTES = 4096
_BYTE_ORDER_MARK = "\ufeff"
_IN_WORDS = {
    "unexpected end of data": "a field that begins with a quote does not end",
    "line contains NUL": "it has the control character U+0000",
}


@dataclass(frozen=True, kw_only=True)
class Unparsed:
    """A row that cannot be read: what is wrong with it, and the remedy."""

    problem: str
    remedy: str


def read_file(path: Path) -> Iterator[tuple[int, object]]:
    """Yield the rows of a file of one of `READERS`, each with its number; raises `InvalidSource`."""
    read = READERS[path.suffix.lower()]
    try:
        with path.open("rb") as file:
            encoding = encoding_of(file.read(_HEAD_BYTES))
        with path.open(encoding=encoding) as lines:
            yield from enumerate(read(lines), start=1)
    except UnicodeDecodeError as error:
        message = f"{on_one_line(str(path))} cannot be read: its text is not UTF-8."
        remedy = "Save it as UTF-8; Excel calls that `CSV UTF-8 (Comma delimited)`."
        raise InvalidSource(message, reason="SOURCE_UNREADABLE", remedy=remedy) from error
    except (OSError, ValueError) as error:  # no name has a zero byte
        message = f"{on_one_line(str(path))} cannot be read: {getattr(error, 'strerror', None) or error}."
        remedy = "Name a JSONL or CSV file in UTF-8 that can be read; images as base64 go into JSONL."
        raise InvalidSource(message, reason="SOURCE_UNREADABLE", remedy=remedy) from error


def _read_jsonl(lines: Iterable[str]) -> Iterator[object]:
    for line in lines:
        text = line.lstrip(_BYTE_ORDER_MARK)  # of files that were joined
        if not text.strip():  # as many files end
            continue
        try:
            yield json.loads(text)
        except (ValueError, RecursionError) as error:
            yield Unparsed(problem=f"it is not JSON: {error}", remedy=f"Write each line like {_JSONL_EXAMPLE}.")


def _read_csv(lines: Iterator[str]) -> Iterator[object]:
    """Yield the rows below the first, which names the columns; the delimiter is the one that splits it most."""
    first = next(lines, "")
    delimiter = max(_DELIMITERS, key=lambda each: len(_fields(first, each)))
    rows = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
    columns: list[str] = []
    try:
        for fields in rows:
            if not fields:  # an empty line
                continue
            if not columns:
                columns = [field.replace(_BYTE_ORDER_MARK, "").strip() for field in fields]
            elif len(fields) != len(columns):
                yield _of_other_length(fields, columns, delimiter)
            else:
                yield dict(zip(columns, fields, strict=True))
    except csv.Error as error:
        cause = _IN_WORDS.get(str(error), str(error))
        remedy = 'Put a caption that has quotes into quotes, and write each of its own twice: "a ""cat""".'
        yield Unparsed(problem=f"it is not CSV at line {rows.line_num}: {cause}", remedy=remedy)


def _fields(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


def _of_other_length(fields: list[str], columns: list[str], delimiter: str) -> Unparsed:
    mark = {"\t": "a tab"}.get(delimiter, f"`{delimiter}`")
    problem = f"it has {len(fields)} fields, and the first line names {len(columns)} columns"
    return Unparsed(problem=problem, remedy=f"Put a caption that has {mark} in it into quotes.")


READERS: Mapping[str, Callable[[Iterator[str]], Iterator[object]]] = {".jsonl": _read_jsonl, ".csv": _read_csv}
