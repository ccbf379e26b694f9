"""The header of a safetensors file from a stranger: bounded, and checked in full before a tensor is loaded.

A file is 8 bytes with the header's length, the header, JSON that gives each tensor's type, shape and place, and the
tensors side by side. Nothing but this header is read here, from bytes or from an object in the store.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

LENGTH_BYTES = 8
LARGEST_HEADER_BYTES = 8 << 20
MOST_TENSORS = 10_000  # FLUX.1-dev and its text encoders have 750 linear layers, of up to 7 tensors each
MOST_METADATA = 10_000  # entries; kohya's sd-scripts write some eighty
MOST_AXES = 8
MOST_DIGITS = 20
# What JSON of this size may cost is counted before it is parsed. A tensor has five texts (its name, three keys, a
# type), three brackets, and a comma for each axis and between all else.
MOST_TEXTS = 5 * MOST_TENSORS + 2 * MOST_METADATA
MOST_BRACKETS = 4 * MOST_TENSORS
MOST_COMMAS = (MOST_AXES + 4) * MOST_TENSORS + MOST_METADATA
MOST_ESCAPES = 1 << 20  # such as the quotes in kohya's `ss_tag_frequency`, which is JSON within a text
LARGEST_AXIS = 1 << 40
METADATA = "__metadata__"
FLOATS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8}
"""Bits of a number in the floating-point types that torch computes with."""
_BITS = FLOATS | {
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F4": 4,
    "C64": 64,
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "U16": 16,
    "I16": 16,
    "U32": 32,
    "I32": 32,
    "U64": 64,
    "I64": 64,
}


# Parsing is Python's alone: several threads that did it at once would each delay every other thread of the process.
_PARSING = threading.Lock()


class NotSafetensors(ValueError):
    """The bytes are no safetensors file, or one beyond the bounds above; the text says what is wrong."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a file lies: its size, and how `length` bytes from `offset` on are read."""

    size_bytes: int
    read: Callable[[int, int], bytes]

    @staticmethod
    def of(data: bytes) -> Source:
        """A file that is in memory."""
        return Source(size_bytes=len(data), read=lambda offset, length: data[offset : offset + length])


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor: its type as safetensors writes it, its shape, and the bytes of the file that hold it."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def numbers(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)

    @property
    def is_floating_point(self) -> bool:
        """Whether torch computes with its type."""
        return self.dtype in FLOATS


@dataclass(frozen=True, kw_only=True)
class Header:
    """All tensors of a file by name, in the order of their bytes, and what is written beside them."""

    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str]

    @property
    def float32_bytes(self) -> int:
        """Size of all tensors in float32."""
        return 4 * sum(entry.numbers for entry in self.tensors.values())


def read_header(source: Source) -> Header:
    """Read and check a file's header. Raises `NotSafetensors`, and what `source` raises."""
    size = source.size_bytes
    if size < LENGTH_BYTES:
        raise NotSafetensors(f"it has {size} bytes, too few for a safetensors file")
    length = int.from_bytes(_read(source, 0, LENGTH_BYTES), "little")
    if length > LARGEST_HEADER_BYTES:
        raise NotSafetensors(
            f"its first 8 bytes give a header of {length:,} bytes, and one may have {LARGEST_HEADER_BYTES:,}"
        )
    if LENGTH_BYTES + length > size:
        raise NotSafetensors(f"it has {size:,} bytes and ends within its header of {length:,}")
    text = _read(source, LENGTH_BYTES, length)
    with _PARSING:
        return _header(text, size)


def _header(text: bytes, size: int) -> Header:
    """Check the header of a file of this size."""
    fields = _json(text)
    metadata = _metadata(fields)
    if len(fields) > MOST_TENSORS:
        raise NotSafetensors(f"it has {len(fields):,} tensors, and it may have {MOST_TENSORS:,}")
    start = LENGTH_BYTES + len(text)
    entries = sorted(
        ((name, _entry(name, field, start)) for name, field in fields.items()),
        key=lambda item: (item[1].begin, item[1].end),
    )
    place = start
    for name, entry in entries:
        if entry.begin != place:
            raise NotSafetensors(f"its tensor {_shown(name)} begins at byte {entry.begin}, where {place} was due")
        place = entry.end
    if place != size:
        raise NotSafetensors(f"it has {size:,} bytes, and its header accounts for {place:,}")
    return Header(tensors=dict(entries), metadata=metadata)


def _read(source: Source, offset: int, length: int) -> bytes:
    data = source.read(offset, length) if length else b""
    if len(data) != length:
        raise NotSafetensors("it changed while it was read")
    return data


def _json(text: bytes) -> dict[str, Any]:
    _refuse_costly(text)
    try:
        fields = json.loads(
            text.decode(),
            object_pairs_hook=_distinct,
            parse_constant=_no_constant,
            parse_float=_no_fraction,
            parse_int=_whole,
        )
    except NotSafetensors:
        raise
    except (ValueError, RecursionError) as error:
        raise NotSafetensors("its header is not JSON") from error
    if not isinstance(fields, dict):
        raise NotSafetensors("its header is no object")
    return fields


def _refuse_costly(text: bytes) -> None:
    """Raise unless a header's JSON is cheap to parse: it is parsed in one go, while no other thread runs."""
    escapes = text.count(b"\\")
    if escapes > 2 * MOST_ESCAPES:
        raise NotSafetensors(f"its header has {escapes:,} backslashes, and it may have {2 * MOST_ESCAPES:,}")
    # Without escaped backslashes and then without escaped quotes, each quote that is left begins or ends a text.
    plain = text.replace(b"\\\\", b"").replace(b'\\"', b"") if escapes else text
    _refuse_more("texts", plain.count(b'"') // 2, MOST_TEXTS)
    outside = b"".join(plain.split(b'"')[::2])
    _refuse_more("brackets", outside.count(b"{") + outside.count(b"["), MOST_BRACKETS)
    _refuse_more("commas", outside.count(b","), MOST_COMMAS)


def _refuse_more(what: str, count: int, most: int) -> None:
    if count > most:
        raise NotSafetensors(f"its header has {count:,} {what}, too many for {MOST_TENSORS:,} tensors")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise NotSafetensors("its header has a name twice")
    return fields


def _no_constant(name: str) -> float:
    raise NotSafetensors(f"its header has {name}, which is not JSON")


def _no_fraction(number: str) -> float:
    raise NotSafetensors(f"its header has {_shown(number)}, and shapes and offsets are whole numbers")


def _whole(number: str) -> int:
    if len(number) > MOST_DIGITS:
        raise NotSafetensors(f"its header has a number of {len(number):,} digits")
    return int(number)


def _metadata(fields: dict[str, Any]) -> dict[str, str]:
    """What is under `__metadata__`, taken out of the fields."""
    metadata = fields.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise NotSafetensors(f"its {METADATA} is not an object of texts")
    if len(metadata) > MOST_METADATA:
        raise NotSafetensors(f"its {METADATA} has {len(metadata):,} entries, and it may have {MOST_METADATA:,}")
    return metadata


def _entry(name: str, field: Any, start: int) -> Entry:
    if not isinstance(field, dict) or set(field) != {"dtype", "shape", "data_offsets"}:
        raise NotSafetensors(f"its tensor {_shown(name)} is not given by dtype, shape and data_offsets")
    dtype, shape, offsets = field["dtype"], field["shape"], field["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise NotSafetensors(f"its tensor {_shown(name)} has the unknown type {_shown(dtype)}")
    if not _naturals(shape, LARGEST_AXIS) or len(shape) > MOST_AXES:
        raise NotSafetensors(f"its tensor {_shown(name)} has the shape {_shown(shape)}")
    if not _naturals(offsets, 1 << 62) or len(offsets) != 2:
        raise NotSafetensors(f"its tensor {_shown(name)} has the offsets {_shown(offsets)}")
    begin, end = offsets
    if 8 * (end - begin) != math.prod(shape) * _BITS[dtype]:
        raise NotSafetensors(
            f"its tensor {_shown(name)} has {end - begin} bytes, which are not {dtype} of shape {_shown(shape)}"
        )
    return Entry(dtype=dtype, shape=tuple(shape), begin=start + begin, end=start + end)


def _naturals(values: Any, most: int) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= most for value in values)


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
