"""The header of a safetensors file: read as the library reads it where it is one, and else refused in words."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from services.common.safetensors_header import (
    MOST_COMMAS,
    MOST_ESCAPES,
    MOST_METADATA,
    MOST_TENSORS,
    MOST_TEXTS,
    NotSafetensors,
    Source,
    read_header,
)

TENSORS = {"a": torch.ones(2, 3), "b": torch.ones((), dtype=torch.float8_e4m3fn), "c": torch.ones(0, 4)}


def with_header(text: bytes | dict[str, Any] | list[Any], data: bytes = b"") -> Source:
    """A file with this header and these bytes of tensors."""
    text = text if isinstance(text, bytes) else json.dumps(text).encode()
    return Source.of(len(text).to_bytes(8, "little") + text + data)


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4), **more: Any) -> dict[str, Any]:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}}


def test_header_is_what_the_library_reads(tmp_path: Any) -> None:
    (tmp_path / "x").write_bytes(data := save(TENSORS, {"who": "ada"}))
    header = read_header(Source.of(data))
    with safe_open(tmp_path / "x", "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        assert header.metadata == file.metadata()
    found = {name: (each.dtype, list(each.shape)) for name, each in header.tensors.items()}
    assert found == {name: (each.get_dtype(), each.get_shape()) for name, each in slices.items()}
    assert header.float32_bytes == 4 * 7


class Watched(bytes):
    """Bytes that know how many threads decode such bytes at once."""

    now, most = 0, 0
    _counting = threading.Lock()

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        with self._counting:
            Watched.now += 1
            Watched.most = max(Watched.most, Watched.now)
        time.sleep(0.01)
        with self._counting:
            Watched.now -= 1
        return super().decode(encoding, errors)


def test_headers_are_parsed_one_at_a_time_so_that_other_threads_get_their_turn() -> None:
    data: bytes = save(TENSORS)
    source = Source(size_bytes=len(data), read=lambda offset, length: Watched(data[offset : offset + length]))
    with ThreadPoolExecutor(8) as threads:
        headers = list(threads.map(read_header, [source] * 8))
    assert [set(header.tensors) for header in headers] == [set(TENSORS)] * 8
    assert Watched.most == 1


def test_nothing_but_the_header_is_read() -> None:
    data: bytes = save({"x": torch.zeros(1000)})
    ends: list[int] = []

    def read(offset: int, length: int) -> bytes:
        ends.append(offset + length)
        return data[offset : offset + length]

    read_header(Source(size_bytes=len(data), read=read))
    assert max(ends) == len(data) - 4000


def test_header_has_up_to_8_mib() -> None:
    assert read_header(with_header(b"{}".ljust(8 << 20))).tensors == {}
    with pytest.raises(NotSafetensors, match="a header of 8,388,609 bytes, and one may have 8,388,608"):
        read_header(with_header(b"{}".ljust((8 << 20) + 1)))


@pytest.mark.parametrize(
    "name", ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "int8", "int64", "bool"]
)
def test_size_of_a_type_is_that_which_the_library_writes(name: str) -> None:
    data: bytes = save({"x": torch.zeros(3, 5, dtype=getattr(torch, name))})
    (found,) = read_header(Source.of(data)).tensors.values()
    assert found.end - found.begin == torch.zeros(3, 5, dtype=getattr(torch, name)).nbytes


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (Source.of(b""), "too few"),
        (Source.of((1 << 40).to_bytes(8, "little")), "and one may have"),
        (Source.of((100).to_bytes(8, "little") + b"{}"), "ends within"),
        (with_header(b"nonsense"), "not JSON"),
        (with_header(b"\xff\xfe"), "not JSON"),
        (with_header(b"[" * 30_000), "not JSON"),
        (with_header(b"9" * 5000), "5,000 digits"),
        (with_header(b"[" * 300_000), "brackets"),
        (with_header([]), "no object"),
        (with_header(b'{"x": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}', bytes(4)), "NaN"),
        (with_header(b'{"x": 1, "x": 2}'), "twice"),
        (with_header({"__metadata__": None}), "__metadata__"),
        (with_header({"__metadata__": {"a": 1}}), "__metadata__"),
        (with_header({"__metadata__": dict.fromkeys(map(str, range(MOST_METADATA + 1)), "")}), "10,001 entries"),
        (with_header(entry(shape=[0.5]), bytes(4)), "whole numbers"),
        (with_header({"x": None}), "is not given by"),
        (with_header(entry(more=1), bytes(4)), "is not given by"),
        (with_header(entry(dtype="F33"), bytes(4)), "unknown type"),
        (with_header(entry(dtype=["F32"]), bytes(4)), "unknown type"),
        (with_header(entry(shape=[-1]), bytes(4)), "shape"),
        (with_header(entry(shape=[True]), bytes(4)), "shape"),
        (with_header(entry(shape=[1.0]), bytes(4)), "shape"),
        (with_header(entry(shape=[1] * 9), bytes(4)), "shape"),
        (with_header(entry(shape=[1 << 60]), bytes(4)), "shape"),
        (with_header(entry(shape=[2]), bytes(4)), "are not F32"),
        (with_header(entry(offsets=[4, 0]), bytes(4)), "are not F32"),
        (with_header(entry(offsets=[0]), bytes(4)), "offsets"),
        (with_header(entry(offsets=[4, 8]), bytes(8)), "was due"),
        (with_header(entry(), bytes(8)), "accounts for"),
        (with_header(entry(), b""), "accounts for"),
        (with_header(entry() | {"y": entry()["x"]}, bytes(4)), "was due"),
    ],
)
def test_what_is_no_safetensors_file_is_refused_in_words(source: Source, says: str) -> None:
    with pytest.raises(NotSafetensors, match=says):
        read_header(source)


def test_number_of_tensors_is_bounded_and_told_in_time() -> None:
    tensors = {str(number): entry(shape=[0], offsets=[0, 0])["x"] for number in range(MOST_TENSORS)}
    begin_s = time.monotonic()
    assert len(read_header(with_header(tensors)).tensors) == MOST_TENSORS
    with pytest.raises(NotSafetensors, match="10,001 tensors"):
        read_header(with_header(tensors | {"one more": entry(shape=[0], offsets=[0, 0])["x"]}))
    assert time.monotonic() - begin_s < 10


COSTLY = {
    "texts": b"{" + b",".join(b'"%x":""' % number for number in range(700_000)) + b"}",
    "metadata": b'{"__metadata__":{' + b",".join(b'"%x":""' % number for number in range(650_000)) + b"}}",
    "texts that end in a backslash": b'{"a":[' + b",".join([rb'"\\"'] * (MOST_TEXTS + 1)) + b"]}",
    "commas": b'{"a":[' + b"1," * (MOST_COMMAS + 1) + b"1]}",
    "brackets": b'{"a":[' + b"[]," * 100_000 + b"[]]}",
    "backslashes": b'{"__metadata__":{"a":"' + rb"\n" * (2 * MOST_ESCAPES + 1) + b'"}}',
}


@pytest.mark.parametrize("name", COSTLY)
def test_header_that_is_costly_to_parse_is_refused_before_it_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(json, "loads")
    with pytest.raises(NotSafetensors, match=r"too many|may have"):
        read_header(with_header(COSTLY[name]))


def test_header_with_the_captions_of_a_large_data_set_is_taken() -> None:
    tags = {f"10_{folder}": {f'a "tag", {{{tag}}} [x] \\ é': tag for tag in range(20_000)} for folder in range(3)}
    metadata = {"ss_tag_frequency": json.dumps(tags)} | {f"ss_{number}": "x" for number in range(100)}
    layers = {f"lora_unet_{number}": entry(shape=[0, 4], offsets=[0, 0])["x"] for number in range(2_000)}
    header = read_header(with_header({"__metadata__": metadata} | layers))
    assert (header.metadata, len(header.tensors)) == (metadata, 2_000)


def test_file_that_changes_while_it_is_read_is_refused() -> None:
    data = save(TENSORS)
    with pytest.raises(NotSafetensors, match="changed"):
        read_header(Source(size_bytes=len(data), read=lambda offset, length: data[offset : offset + min(length, 8)]))
