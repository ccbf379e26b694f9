"""Thousands of damaged files: each is decoded or refused in words, silently, in bounded time, and nothing is kept.

It runs in a process of its own, so that a crash is a failed test and memory is its alone. By hand, for longer:
`python -m tests.services.encoder.images.test_fuzz 100000 1`.
"""

from __future__ import annotations

import ctypes
import gc
import json
import random
import resource
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from services.encoder.images.decoding import Decoded, decode
from services.encoder.problems import BadSample
from tests.services.encoder.images.test_decoding import exchanged, file_of, red_ink

FILES = 10_000
LIMIT_PX = 40_000
ROOT = Path(__file__).resolve().parents[4]
Mutation = Callable[[bytearray, random.Random], None]


@dataclass(kw_only=True)
class Outcome:
    """What a run of the fuzzer saw."""

    files: int
    decoded: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    escaped: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    slowest: str = ""
    grown_mb: float = 0.0
    peak_mb: float = 0.0
    seconds: float = 0.0


@cache
def seeds() -> dict[str, bytes]:
    """A whole file of every format and kind of pixel, small so that a mutation hits what matters."""
    rng = np.random.default_rng(0)
    photo = Image.fromarray(np.repeat(rng.integers(0, 255, (16, 36, 3), dtype=np.uint8), 2, axis=0))
    rgba = Image.merge("RGBA", (*photo.split(), photo.convert("L")))
    exif = Image.Exif()
    exif[0x0112] = 6
    notes = {"exif": exif.tobytes(), "icc_profile": exchanged()}
    grey16 = Image.fromarray(rng.integers(0, 65535, (32, 36), dtype=np.uint16))

    def frames_of(kind: str, **options: object) -> bytes:
        return file_of(photo, kind, save_all=True, append_images=[photo.rotate(180)], **options)

    return {
        "png": file_of(photo, "PNG", **notes),
        "png rgba": file_of(rgba, "PNG"),
        "png palette": file_of(photo.convert("P"), "PNG", transparency=3),
        "png 16": file_of(grey16, "PNG", transparency=9),
        "apng": frames_of("PNG"),
        "jpeg": file_of(photo, "JPEG", **notes),
        "jpeg progressive": file_of(photo, "JPEG", progressive=True),
        "jpeg cmyk": file_of(photo.convert("CMYK"), "JPEG", icc_profile=red_ink()),
        "mpo": frames_of("MPO"),
        "webp": file_of(rgba, "WEBP", **notes),
        "webp lossless": file_of(rgba, "WEBP", lossless=True),
        "webp frames": frames_of("WEBP"),
        "avif": file_of(rgba, "AVIF", speed=10, **notes),
        "avif frames": frames_of("AVIF", speed=10),
        "heic": file_of(photo, "HEIF", **notes),
        "heic rgba": file_of(rgba, "HEIF"),
        "tiff": file_of(rgba, "TIFF", **notes),
        "tiff lzw": file_of(photo, "TIFF", compression="tiff_lzw"),
        "tiff deflate": file_of(grey16, "TIFF", compression="tiff_deflate"),
        "tiff jpeg": file_of(photo, "TIFF", compression="jpeg"),
        "tiff g4": file_of(photo.convert("1"), "TIFF", compression="group4"),
        "tiff pages": frames_of("TIFF"),
        "bmp": file_of(photo, "BMP"),
        "bmp palette": file_of(photo.convert("P"), "BMP"),
        "gif": frames_of("GIF"),
    }


def flip_bits(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 2, 8, 40))):
        data[position(data, rng)] ^= 1 << rng.randrange(8)


def set_bytes(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 3, 10))):
        data[position(data, rng)] = rng.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF, rng.randrange(256)))


def insert_bytes(data: bytearray, rng: random.Random) -> None:
    at = position(data, rng)
    data[at:at] = rng.randbytes(rng.choice((1, 2, 7, 300)))


def delete_bytes(data: bytearray, rng: random.Random) -> None:
    at = position(data, rng)
    del data[at : at + rng.choice((1, 2, 7, 100))]


def truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def swap_chunks(data: bytearray, rng: random.Random) -> None:
    one, two, length = position(data, rng), position(data, rng), rng.choice((4, 16, 64))
    data[one : one + length], data[two : two + length] = data[two : two + length], data[one : one + length]


def lie_about_a_length(data: bytearray, rng: random.Random) -> None:
    at, kind = position(data, rng), rng.choice(("<H", ">H", "<I", ">I"))
    value = rng.choice((0, 1, 2, 255, 4096, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF))
    packed = struct.pack(kind, value & (0xFFFF if kind[1] == "H" else 0xFFFFFFFF))
    data[at : at + len(packed)] = packed


def append_another(data: bytearray, rng: random.Random) -> None:
    data += rng.choice(list(seeds().values()))


def graft_another(data: bytearray, rng: random.Random) -> None:
    other = rng.choice(list(seeds().values()))
    at, start = position(data, rng), rng.randrange(len(other))
    data[at : at + 60] = other[start : start + 60]


MUTATIONS: tuple[Mutation, ...] = (
    flip_bits,
    set_bytes,
    insert_bytes,
    delete_bytes,
    truncate,
    swap_chunks,
    lie_about_a_length,
    append_another,
    graft_another,
)


def position(data: bytearray, rng: random.Random) -> int:
    """Anywhere, but half of the time near the beginning, where sizes and tables are."""
    return rng.randrange(min(len(data), rng.choice((64, 400, len(data), len(data)))))


def mutated(name: str, rng: random.Random) -> bytes:
    """A damaged file; of PNGs, most have their checksums mended, as else nothing behind them would be reached."""
    data = bytearray(seeds()[name])
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if data:
            rng.choice(MUTATIONS)(data, rng)
    return mend_checksums(data) if "png" in name and rng.random() < 0.8 else bytes(data)


def mend_checksums(data: bytearray) -> bytes:
    at = 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(data)


def fuzz(files: int, seed: int) -> Outcome:
    """Decode so many damaged files."""
    outcome, names, began, memory = Outcome(files=files), list(seeds()), time.perf_counter(), 0.0
    for number in range(files):
        if number == files // 3:  # by now what libraries set up once is set up
            memory = memory_mb()
        name = names[number % len(names)]
        try_one(outcome, f"{name} {seed} {number}", mutated(name, random.Random(f"{seed} {number}")))  # noqa: S311
    outcome.grown_mb = memory_mb() - memory
    outcome.peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    outcome.seconds = time.perf_counter() - began
    return outcome


def memory_mb() -> float:
    """What this process holds of the machine's memory, without what is free and only kept at hand."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def try_one(outcome: Outcome, which: str, data: bytes) -> None:
    began = time.process_time()
    try:
        check(decode(data, max_pixels=LIMIT_PX))
        outcome.decoded += 1
    except BadSample as error:
        outcome.refused[error.problem.value] += 1
        if not error.message.isprintable():
            outcome.escaped.append(f"{which}: {error.message!r}")
    except BaseException as error:  # noqa: BLE001 - that none arrives is what is tested
        outcome.escaped.append(f"{which}: {error!r}")
    if (seconds := time.process_time() - began) > outcome.slowest_s:
        outcome.slowest_s, outcome.slowest = seconds, which


def check(decoded: Decoded) -> None:
    assert decoded.image.mode == "RGB"
    assert decoded.image.width * decoded.image.height <= LIMIT_PX
    assert decoded.alpha is None or (decoded.alpha.mode, decoded.alpha.size) == ("L", decoded.image.size)


@pytest.fixture(scope="module")
def run() -> subprocess.CompletedProcess[str]:
    """The fuzzer's process, with every warning asked for."""
    command = [sys.executable, "-W", "always", "-m", "tests.services.encoder.images.test_fuzz", str(FILES), "0"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def outcome(run: subprocess.CompletedProcess[str]) -> Outcome:
    assert run.returncode == 0, f"it ended with {run.returncode}: {run.stderr[-2000:]}"
    return Outcome(**json.loads(run.stdout))


def test_damaged_files_are_decoded_or_refused_and_nothing_else(outcome: Outcome) -> None:
    assert outcome.escaped == []
    assert outcome.decoded + sum(outcome.refused.values()) == FILES


def test_damage_reaches_past_the_headers(outcome: Outcome) -> None:
    assert outcome.decoded > FILES / 10
    assert outcome.refused["TRUNCATED"] > FILES / 10


def test_damaged_files_are_refused_in_silence(run: subprocess.CompletedProcess[str], outcome: Outcome) -> None:
    assert outcome.files == FILES
    assert run.stderr == ""


def test_memory_does_not_grow_with_damaged_files(outcome: Outcome) -> None:
    assert outcome.grown_mb < 4  # one picture kept of each file decoded would be 10


def test_no_damaged_file_takes_long(outcome: Outcome) -> None:
    assert outcome.slowest_s < 2, outcome.slowest


if __name__ == "__main__":
    print(json.dumps(vars(fuzz(int(sys.argv[1]), int(sys.argv[2])))))  # noqa: T201 - what the test reads
