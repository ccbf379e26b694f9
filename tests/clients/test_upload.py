"""The messages of an upload: target first, then each sample's header and bytes; only what is missing goes again."""

import dataclasses
import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fluxsmith import CaptionedImage, Client, DatasetProgress, Sample, TrainConfig, errors
from fluxsmith._samples import MOST_CAPTION_BYTES
from fluxsmith._upload import Tally, UploadStream, missing_images
from fluxsmith.errors import InvalidSource
from fluxsmith.v1 import encoder_pb2
from pydantic import ValidationError

from services.encoder.settings import EncoderSettings
from tests.clients.recording import Recorder

MIB = 1024 * 1024


def image(name: str, content: bytes = b"image") -> CaptionedImage:
    return CaptionedImage(content=content, captions=(f"caption of {name}",), name=name)


def as_stored(sent: CaptionedImage) -> Sample:
    content = sent.read()
    digest = hashlib.sha256(content).hexdigest()
    return Sample(name=sent.name, captions=sent.captions, content_digest=digest, size_bytes=len(content))


def stream_of(*images: CaptionedImage, on_sent: Callable[[], None] = lambda: None) -> UploadStream:
    return UploadStream("d", images, on_sent=on_sent, stop=threading.Event())


def test_samples_follow_their_target_in_chunks_of_a_mebibyte() -> None:
    content = bytes(2 * MIB + 1)
    target, header, *chunks = stream_of(image("a.png", content)).requests()
    assert target.target.dataset_id == "d"
    assert header.sample.sample_name == "a.png"
    assert header.sample.size_bytes == len(content)
    assert header.sample.content_digest == hashlib.sha256(content).hexdigest()
    assert [len(part.chunk) for part in chunks] == [MIB, MIB, 1]


def test_files_are_read_only_when_their_turn_comes(tmp_path: Path) -> None:
    path = tmp_path / "b.png"
    path.write_bytes(b"image")
    second = CaptionedImage(path=path, captions=("a cat",), name="b.png")
    requests = stream_of(image("a.png"), second).requests()
    for _ in range(3):  # target, header and bytes of the first
        next(requests)
    path.write_bytes(b"written later")
    assert next(requests).sample.size_bytes == len(b"written later")


def test_counts_of_all_streams_are_told_in_order() -> None:
    counts: list[int] = []
    tally = Tally(3, counts.append)
    for stream in (stream_of(image("a"), image("b"), on_sent=tally.add), stream_of(image("c"), on_sent=tally.add)):
        list(stream.requests())
    assert counts == [4, 5, 6]


def test_file_that_vanished_is_named_and_ends_the_stream_between_samples(tmp_path: Path) -> None:
    gone = CaptionedImage(path=tmp_path / "gone.png", captions=("a cat",), name="gone.png")
    stream = stream_of(image("a.png"), gone, image("c.png"))
    assert [message.WhichOneof("part") for message in stream.requests()] == ["target", "sample", "chunk"]
    assert isinstance(stream.failure, InvalidSource)
    assert stream.failure.reason == "IMAGE_UNREADABLE"
    assert "gone.png cannot be read" in stream.failure.message


def test_stream_that_ends_early_ends_the_others() -> None:
    stop = threading.Event()
    broken, other = (UploadStream("d", [image("a")], on_sent=lambda: None, stop=stop) for _ in range(2))
    next(broken.requests())
    broken.ended(None)
    assert len(list(other.requests())) == 1


def test_only_what_is_absent_or_different_is_missing() -> None:
    same, absent, changed, renamed, repeated = map(image, ["same", "absent", "changed", "renamed", "repeated"])
    stored = [as_stored(same), as_stored(changed), as_stored(renamed), as_stored(repeated)]
    redrawn = dataclasses.replace(changed, content=b"another image")
    retold = dataclasses.replace(renamed, captions=("another caption",))
    oftener = dataclasses.replace(repeated, repeats=2)
    assert missing_images([same, absent, redrawn, retold, oftener], stored) == [absent, redrawn, retold, oftener]


def test_header_says_how_often_an_epoch_shows_the_sample() -> None:
    _, header, _ = stream_of(dataclasses.replace(image("a.png"), repeats=10)).requests()
    assert header.sample.repeats == 10


@pytest.mark.parametrize("content", [{}, {"path": Path("a"), "content": b"a"}])
def test_image_is_either_a_file_or_content(content: dict[str, Path | bytes]) -> None:
    with pytest.raises(ValueError, match="either a path or content"):
        CaptionedImage(name="a", captions=("a",), **content)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "problem"),
    [
        ({"captions": "fluffy"}, "are not a tuple of texts: 'fluffy'"),
        ({"captions": (1,)}, "are not a tuple of texts"),
        ({"name": 5}, "the name 5 of an image is not text"),
        ({"repeats": 2**40}, "has 1099511627776 repeats, not 1 to 1000"),
    ],
)
def test_image_of_the_wrong_kind_is_refused_when_it_is_made(field: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        CaptionedImage(**{"name": "a", "captions": ("a",), "content": b"a", **field})


def test_content_that_is_not_bytes_is_named(client: Client) -> None:
    wrong: Any = CaptionedImage(name="a", captions=("a",), content=lambda: "text")  # type: ignore[arg-type,return-value]
    with pytest.raises(InvalidSource, match="the image 'a' is of type str, not bytes") as caught:
        client.datasets.upload("d", [wrong])
    assert caught.value.reason == "IMAGE_UNREADABLE"


@pytest.mark.parametrize("streams", [1, 3, 16])
def test_upload_goes_in_as_many_streams_as_wanted(recorder: Recorder, streams: int) -> None:
    images = [image(f"{number}.png") for number in range(7)]
    done: list[DatasetProgress] = []
    with Client(recorder.address, recorder.address, upload_streams=streams) as client:
        client.datasets.upload("d", images, on_progress=done.append)
    sent = recorder.asked(encoder_pb2.UploadSamplesRequest)
    assert sum(message.HasField("target") for message in sent) == min(streams, 7)
    assert sorted(message.sample.sample_name for message in sent if message.HasField("sample")) == sorted(
        sample.name for sample in images
    )
    assert [progress.done_count for progress in done] == list(range(8))


def test_fault_in_one_stream_is_raised_whatever_the_others_do(client: Client, tmp_path: Path) -> None:
    gone = CaptionedImage(path=tmp_path / "gone.png", captions=("a cat",), name="gone.png")
    with pytest.raises(errors.InvalidSource, match=r"gone\.png cannot be read"):
        client.datasets.upload("d", [image("a"), image("b"), gone, image("c")])


@pytest.mark.parametrize(("name", "caption"), [("a.png", "half \ud83d"), ("\ud83d.png", "a")])
def test_half_a_character_is_told_as_the_source_s_fault(
    client: Client, recorder: Recorder, name: str, caption: str
) -> None:
    with pytest.raises(InvalidSource, match="half a character") as caught:
        client.datasets.create_from([CaptionedImage(content=b"image", captions=(caption,), name=name)])
    assert str(caught.value).encode()
    assert not recorder.requests


@pytest.mark.parametrize("caption", ["a" * 32_769, "ü" * 16_385])
def test_a_caption_that_no_encoder_takes_is_told_by_its_reason_before_sending(
    client: Client, recorder: Recorder, caption: str
) -> None:
    with pytest.raises(InvalidSource, match="too long") as caught:
        client.datasets.upload("d", [CaptionedImage(content=b"image", captions=(caption,), name="a.png")])
    assert caught.value.reason == "CAPTION_TOO_LONG"
    assert not recorder.requests


def test_no_encoder_can_be_set_to_take_a_caption_that_is_not_sent() -> None:
    EncoderSettings(max_caption_bytes=MOST_CAPTION_BYTES)
    with pytest.raises(ValidationError):
        EncoderSettings(max_caption_bytes=MOST_CAPTION_BYTES + 1)


def test_a_prompt_that_is_too_long_is_told_before_it_is_sent(client: Client, recorder: Recorder) -> None:
    with pytest.raises(errors.InvalidRequest) as caught:
        client.validate(TrainConfig(preview_prompts=["a" * 60_000_000]))
    assert caught.value.reason == "CONFIG_INVALID"
    (told,) = caught.value.violations
    assert told.field == "config.preview_prompts"
    assert told.description == "a prompt has 60000000 characters; use 2000 at most"
    assert not recorder.requests


@pytest.mark.parametrize("streams", [0, 17])
def test_streams_out_of_range_are_refused(streams: int) -> None:
    with pytest.raises(errors.InvalidRequest, match=r"upload_streams is .*, not a whole number"):
        Client(upload_streams=streams)


def test_fault_of_the_caller_in_its_progress_is_its_own(client: Client) -> None:
    def on_progress(progress: DatasetProgress) -> None:
        if progress.done_count == 2:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        client.datasets.upload("d", [image(f"{number}") for number in range(5)], on_progress=on_progress)
