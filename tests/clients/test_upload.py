"""The messages of an upload: target first, then each sample's header and bytes; only what is missing goes again."""

import dataclasses
import hashlib
from pathlib import Path

import pytest
from fluxsmith import CaptionedImage, Sample
from fluxsmith._upload import UploadStream, missing_images
from fluxsmith.errors import InvalidFolder

MIB = 1024 * 1024


def image(folder: Path, name: str, content: bytes = b"image") -> CaptionedImage:
    (folder / name).write_bytes(content)
    return CaptionedImage(path=folder / name, captions=(f"caption of {name}",), name=name)


def as_stored(sent: CaptionedImage) -> Sample:
    content = sent.path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return Sample(name=sent.name, captions=sent.captions, content_digest=digest, size_bytes=len(content))


def test_samples_follow_their_target_in_chunks_of_a_mebibyte(tmp_path: Path) -> None:
    content = bytes(2 * MIB + 1)
    stream = UploadStream("d", [image(tmp_path, "a.png", content)], on_sent=lambda _: None)
    target, header, *chunks = stream.requests()
    assert target.target.dataset_id == "d"
    assert header.sample.sample_name == "a.png"
    assert header.sample.size_bytes == len(content)
    assert header.sample.content_digest == hashlib.sha256(content).hexdigest()
    assert [len(part.chunk) for part in chunks] == [MIB, MIB, 1]


def test_files_are_read_only_when_their_turn_comes(tmp_path: Path) -> None:
    first, second = image(tmp_path, "a.png"), image(tmp_path, "b.png")
    requests = UploadStream("d", [first, second], on_sent=lambda _: None).requests()
    for _ in range(3):  # target, header and bytes of the first
        next(requests)
    second.path.write_bytes(b"written later")
    assert next(requests).sample.size_bytes == len(b"written later")


def test_sender_learns_how_many_were_handed_over(tmp_path: Path) -> None:
    counts: list[int] = []
    images = [image(tmp_path, "a.png"), image(tmp_path, "b.png")]
    list(UploadStream("d", images, on_sent=counts.append).requests())
    assert counts == [1, 2]


def test_file_that_vanished_is_named(tmp_path: Path) -> None:
    gone = image(tmp_path, "a.png")
    gone.path.unlink()
    stream = UploadStream("d", [gone], on_sent=lambda _: None)
    with pytest.raises(OSError, match=r"a\.png"):
        list(stream.requests())
    assert isinstance(stream.failure, InvalidFolder)
    assert "a.png cannot be read" in stream.failure.message


def test_only_what_is_absent_or_different_is_missing(tmp_path: Path) -> None:
    same, absent = image(tmp_path, "same.png"), image(tmp_path, "absent.png")
    changed, renamed = image(tmp_path, "changed.png"), image(tmp_path, "renamed.png")
    repeated = image(tmp_path, "repeated.png")
    stored = [as_stored(same), as_stored(changed), as_stored(renamed), as_stored(repeated)]
    changed.path.write_bytes(b"another image")
    retold = CaptionedImage(path=renamed.path, captions=("another caption",), name=renamed.name)
    oftener = dataclasses.replace(repeated, repeats=2)
    assert missing_images([same, absent, changed, retold, oftener], stored) == [absent, changed, retold, oftener]


def test_header_says_how_often_an_epoch_shows_the_sample(tmp_path: Path) -> None:
    repeated = dataclasses.replace(image(tmp_path, "a.png"), repeats=10)
    _, header, _ = UploadStream("d", [repeated], on_sent=lambda _: None).requests()
    assert header.sample.repeats == 10
