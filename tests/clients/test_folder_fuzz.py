"""Random folders, with a fixed seed: each entry is trained on or mentioned, or an error says what is wrong."""

import os
import random
import shutil
import unicodedata
from pathlib import Path

import pytest
from fluxsmith._folder import IMAGE_SUFFIXES, OTHER_PICTURES, FolderImages, folder_name, read_folder
from fluxsmith._samples import sample_faults
from fluxsmith.cli.chosen import choose
from fluxsmith.errors import InvalidFolder
from fluxsmith.training import TrainConfig
from fluxsmith.v1.encoder_pb2 import SampleHeader
from fluxsmith_text import fault_of, on_one_line

from services.encoder.requests import sample_record
from services.encoder.settings import EncoderSettings
from services.trainer.config import parse_config

FOLDERS = 2000
LIMITS = EncoderSettings()
SUFFIXES = [*sorted(IMAGE_SUFFIXES), ".PNG", ".Jpg", ".txt", ".TXT", ".txt ", ".caption", ".jp2", ".json", "", "."]
CORNERS = [
    *("a", "cat", "Cat", " ", "\u00a0", "\u202f", "\u3000", "\u200b", "\u200d", "\ufeff", "\u2028", "\u0085", "\n"),
    *(
        "\t",
        "\x1b",
        "\x7f",
        "e\u0301",
        "\u00e9",
        "\uac00",
        "\u1100\u1161",
        "\U0001f468\u200d\U0001f469",
        "\u05e9\u200f",
    ),
    *(
        "\u202e",
        "\ufffd",
        "\U000e0041",
        "\ufb01",
        "\u0130",
        "\u00df",
        ".",
        "..",
        "-",
        "'",
        '"',
        "`",
        "$(x)",
        "%s",
        "{}",
    ),
    *("[trigger]", "$(x)", "{}", "\\", "?", "*", ";", "#", "~", "CON", "\U0010ffff", "x" * 60, "\u732b" * 20),
]
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252", "shift-jis"]


def a_stem(draw: random.Random) -> bytes:
    kind = draw.random()
    if kind < 0.1:
        return bytes(draw.choice([*range(1, 47), *range(48, 256)]) for _ in range(draw.randint(1, 20)))
    if kind < 0.2:  # anything that Unicode has, but what file names cannot have
        points = [draw.randrange(1, 0x110000) for _ in range(draw.randint(1, 8))]
        text = "".join(chr(point) for point in points if point != ord("/") and not 0xD800 <= point < 0xE000)
    else:
        text = "".join(draw.choices(CORNERS, k=draw.randint(1, 3)))
    return text.encode()


def a_text(draw: random.Random) -> bytes:
    kind = draw.random()
    if kind < 0.1:
        return draw.randbytes(draw.randint(0, 30))
    text = draw.choice(["", " ", "a cat", "a cat"]) + "".join(draw.choices(CORNERS, k=draw.randint(0, 4)))
    return text.encode(draw.choice(ENCODINGS) if kind < 0.4 else "utf-8", errors="replace")


def put(draw: random.Random, path: bytes, content: bytes) -> None:
    """Make an entry of some kind."""
    kind = draw.random()
    if kind < 0.88:
        with open(path, "wb") as file:  # noqa: PTH123  # a path of bytes
            file.write(content)
    elif kind < 0.91:
        os.mkdir(path)  # noqa: PTH102
    elif kind < 0.96:
        os.symlink(draw.choice([b"nowhere", b".", b"..", os.path.basename(path)]), path)  # noqa: PTH119, PTH211
    elif kind < 0.98:
        os.mkfifo(path)


def make_folder(draw: random.Random, folder: bytes) -> None:
    """Fill a folder with up to nine entries, most of them pictures with captions."""
    os.mkdir(folder)  # noqa: PTH102
    for _ in range(draw.randint(0, 4)):
        stem = a_stem(draw)[: draw.choice([240, 250])]
        twin = unicodedata.normalize("NFD", stem.decode(errors="surrogateescape")).encode(errors="surrogateescape")
        entries = [(stem, draw.choice(SUFFIXES), b"picture" if draw.random() < 0.95 else b"")]
        if draw.random() < 0.8:
            entries.append((draw.choice([stem, stem, twin]), draw.choice([".txt", ".txt", ".TXT"]), a_text(draw)))
        for name, suffix, content in entries:
            try:
                put(draw, folder + b"/" + name + suffix.encode(), content)
            except (OSError, ValueError):  # no name of this file system, or one that is there
                continue


def check_mentioned(folder: Path, images: FolderImages) -> None:
    """Assert that each entry is a picture, the caption of one, or left out by name; but for the system's own."""
    mentioned = {entry.name for entry in images.left_out}
    pictures = {image.path for image in images}
    others = {path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES | OTHER_PICTURES}
    stems = {unicodedata.normalize("NFC", path.stem) for path in pictures | others if path}
    for path in folder.iterdir():
        caption = path.suffix.lower() == ".txt" and unicodedata.normalize("NFC", path.stem) in stems
        is_sample = path.suffix.lower() in {*IMAGE_SUFFIXES, ".txt"}
        hidden = path.name.startswith(".") and (path.name.startswith("._") or not is_sample)
        assert path in pictures or caption or hidden or on_one_line(path.name) in mentioned, path
    assert not fault_of(images.left_out_line)


def check_taken(images: FolderImages) -> None:
    """Assert that both services take the samples, and the previews that are chosen of them."""
    assert len({image.name for image in images}) == len(images)
    for image in images:
        assert not sample_faults(image.name, image.captions)
        content = image.read()
        header = SampleHeader(sample_name=image.name, captions=image.captions, size_bytes=len(content))
        sample_record(SampleHeader.FromString(header.SerializeToString() + _digest()), LIMITS)
    config, _ = choose(TrainConfig(), images, measured=False, early=False)
    parse_config({"epochs": config.epochs, "preview_prompts": config.preview_prompts or ()})


def check_refusal(folder: Path, error: InvalidFolder) -> None:
    """Assert that the folder and what is wrong with it are named, in words that a terminal can show."""
    assert error.reason in {"FOLDER_EMPTY", "FOLDER_INVALID"}
    assert error.remedy
    assert not fault_of(str(error))
    assert on_one_line(str(folder)) in error.message
    if error.reason == "FOLDER_INVALID":
        assert any(on_one_line(path.name) in error.message for path in folder.iterdir())


def _digest() -> bytes:
    return SampleHeader(content_digest="0" * 64).SerializeToString()


@pytest.mark.parametrize("part", range(4))
def test_random_folders_are_read_or_refused_in_words(tmp_path: Path, part: int) -> None:
    draw = random.Random(part)  # noqa: S311  # a fixed seed is the point
    read = refused = 0
    for number in range(FOLDERS // 4):
        folder = os.fsencode(tmp_path) + f"/{number}".encode() + a_stem(draw)[:200].replace(b"\0", b"")
        try:
            make_folder(draw, folder)
        except OSError:  # no name of this file system
            folder = os.fsencode(tmp_path) + f"/{number}".encode()
            make_folder(draw, folder)
        path = Path(os.fsdecode(folder))
        assert not fault_of(folder_name(path))
        try:
            images = read_folder(path)
        except InvalidFolder as error:
            refused += 1
            check_refusal(path, error)
        else:
            read += 1
            check_mentioned(path, images)
            check_taken(images)
        shutil.rmtree(folder)
    assert min(read, refused) > FOLDERS // 40, (read, refused)  # either happens often enough to be worth the claim
