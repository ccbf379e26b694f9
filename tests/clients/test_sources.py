"""Datasets from wherever images are: the bytes and captions that would be sent, and every bad row named before."""

import base64
import csv
import io
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict, Features, IterableDataset, List, Value
from datasets import Image as ImageFeature
from fluxsmith import CaptionedImage, Client
from fluxsmith._sources import read_source, source_name
from fluxsmith.errors import InvalidFolder, InvalidSource
from fluxsmith.v1 import encoder_pb2
from PIL import Image

from tests.clients.recording import Recorder


def picture(shade: int = 0, mode: str = "RGB") -> Image.Image:
    return Image.new("RGB", (8, 8), (shade, 90, 90)).convert(mode)


def as_file(shade: int = 0, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture(shade).save(buffer, form)
    return buffer.getvalue()


def in_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with two pictures of the same name in folders of their own."""
    for number, part in enumerate(("one", "two")):
        (tmp_path / part).mkdir()
        (tmp_path / part / "cat.png").write_bytes(as_file(number))
    return tmp_path


@pytest.mark.parametrize(
    "given",
    [as_file(), bytearray(as_file()), in_base64(as_file()), f"data:image/png;base64,{in_base64(as_file())}"],
    ids=["bytes", "bytearray", "base64", "data"],
)
def test_image_file_goes_as_it_is(given: Any) -> None:
    [image] = read_source([(given, " a cat\n")])
    assert image.read() == as_file()
    assert (image.name, image.captions) == ("000001.png", ("a cat",))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_format_of_an_image_without_a_name_is_seen(form: str) -> None:
    [image] = read_source([(as_file(form=form), "a cat")])
    assert Image.open(io.BytesIO(image.read())).format == form
    assert Image.registered_extensions()[f".{image.name.partition('.')[2]}"] == form


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "YCbCr"])
def test_pil_image_keeps_its_pixels(mode: str) -> None:
    given = picture(200, mode)
    [image] = read_source([(given, "a cat")])
    kept = Image.open(io.BytesIO(image.read()))
    assert kept.format == "PNG"
    assert kept.convert("RGBA").tobytes() == given.convert("RGB").convert("RGBA").tobytes()


def test_pil_image_keeps_its_orientation() -> None:
    given = picture()
    given.getexif()[0x0112] = 6
    [image] = read_source([(given, "a cat")])
    assert Image.open(io.BytesIO(image.read())).getexif()[0x0112] == 6


def test_names_are_those_of_the_files_and_each_its_own(files: Path) -> None:
    pairs: list[Any] = [(files / "one/cat.png", "a"), (as_file(3), "b"), (str(files / "two/cat.png"), ["c", "d"])]
    images = read_source(pairs)
    assert [image.name for image in images] == ["cat.png", "000002.png", "cat-2.png"]
    assert [image.captions for image in images] == [("a",), ("b",), ("c", "d")]
    assert images == read_source(iter(pairs))


@pytest.mark.parametrize("names", [("file_name", "text"), ("image", "caption"), ("image_path", "description")])
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_file_of_rows_names_images_relative_to_itself(files: Path, kind: str, names: tuple[str, str]) -> None:
    rows = [dict(zip(names, row, strict=True)) for row in [("one/cat.png", "a"), (str(files / "two/cat.png"), "b")]]
    path = files / f"ink.v1.{kind}"
    with path.open("w", newline="") as file:
        if kind == "csv":
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    images = read_source(path)
    assert [(image.read(), image.captions) for image in images] == [(as_file(0), ("a",)), (as_file(1), ("b",))]
    assert (source_name(path), source_name(files / "ink.v1"), source_name([])) == ("ink.v1", "ink.v1", "")


def test_rows_of_mappings_may_hold_base64() -> None:
    [image] = read_source([{"image": in_base64(as_file()), "description": "a cat", "id": 7}])
    assert (image.read(), image.captions) == (as_file(), ("a cat",))


def hub_dataset(**columns: Any) -> Dataset:
    return Dataset.from_dict(columns)


def test_hub_dataset_gives_its_files_unchanged() -> None:
    encoded = [{"bytes": as_file(number, "JPEG"), "path": None} for number in range(3)]
    features = Features(picture_file=ImageFeature(), note=Value("string"), split=Value("int64"))
    source = Dataset.from_dict({"picture_file": encoded, "note": ["a", "b", "c"], "split": [0, 0, 1]}, features)
    images = read_source(source.select([2, 0]))
    assert [image.read() for image in images] == [as_file(2, "JPEG"), as_file(0, "JPEG")]
    assert [(image.name, image.captions) for image in images] == [("000001.jpg", ("c",)), ("000002.jpg", ("a",))]
    assert all(callable(image.content) for image in images)  # few pictures are in memory at a time


def test_hub_dataset_of_paths_and_several_captions(files: Path) -> None:
    paths = [str(files / part / "cat.png") for part in ("one", "two")]
    features = Features(file_name=Value("string"), captions=List(Value("string")), title=Value("string"))
    rows = {"file_name": paths, "captions": [["a", "b"], ["c"]], "title": ["x", "y"]}
    images = read_source(Dataset.from_dict(rows, features), caption_column="captions")
    assert [(image.name, image.captions) for image in images] == [("cat.png", ("a", "b")), ("cat-2.png", ("c",))]


def test_columns_can_be_named() -> None:
    pictures = [picture(1), picture(2)]
    features = Features(before=ImageFeature(), after=ImageFeature(), text=Value("string"), style=Value("string"))
    source = Dataset.from_dict(
        {"before": pictures, "after": pictures[::-1], "text": ["a", "b"], "style": ["ink", "oil"]}, features
    )
    chosen = read_source(source, image_column="after", caption_column="style")
    assert [image.captions for image in chosen] == [("ink",), ("oil",)]
    assert Image.open(io.BytesIO(chosen[0].read())).getpixel((0, 0)) == (2, 90, 90)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (("no-such.png", "a"), "'no-such.png' is neither a file nor an image as base64"),
        (("", "a"), "the image is empty"),
        (("https://example.com/a.png", "a"), "'https://example.com/a.png' is an address"),
        (("QUJD", "a"), "'QUJD' is neither a file nor an image as base64"),
        (("x" * 5000, "a"), "is neither a file nor an image as base64"),
        (("data:image/png,abc!", "a"), "is a data: address without base64"),
        ((Path("no-such.png"), "a"), "cannot be read: No such file"),
        ((b"", "a"), "the image is empty"),
        ((b"%PDF-1.4", "a"), "of no format that the encoder reads"),
        ((7, "a"), "the image is of type int"),
        ((as_file(), " "), "the caption is empty"),
        ((as_file(), []), "the caption is empty"),
        ((as_file(), None), "the caption is of type NoneType"),
        ((as_file(), ["a"] * 17), "there are 17 captions"),
        ((as_file(), "half \ud83d"), "the caption has half a character"),
        ((Path("a\0b"), "a"), "cannot be read: embedded null byte"),
        (as_file(), "it is not a pair of an image and a caption"),
        (("a", "b", "c"), "it is not a pair of an image and a caption"),
    ],
)
def test_bad_row_is_named_with_its_remedy(row: Any, problem: str) -> None:
    with pytest.raises(InvalidSource) as caught:
        read_source([(as_file(), "fine"), row])
    assert problem in caught.value.message
    assert caught.value.message.startswith("1 of 2 rows cannot become samples: row 2: ")
    assert caught.value.reason == "SOURCE_INVALID"
    assert caught.value.remedy
    assert [violation.field for violation in caught.value.violations] == ["row 2"]


def test_all_bad_rows_are_told_at_once_and_nothing_is_sent(client: Client, recorder: Recorder) -> None:
    with pytest.raises(InvalidSource, match=r"11 of 12 rows.*row 11: the caption is empty and 1 more"):
        client.datasets.create_from([(as_file(), "a"), *[(as_file(), "")] * 11])
    assert not recorder.requests


def a_stream() -> IterableDataset:
    return hub_dataset(text=["a"]).to_iterable_dataset()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda _: 7, "SOURCE_KIND_UNKNOWN"),
        (lambda _: as_file(), "SOURCE_KIND_UNKNOWN"),
        (lambda _: DatasetDict(train=hub_dataset(text=["a"])), "SOURCE_KIND_UNKNOWN"),
        (lambda _: a_stream(), "SOURCE_KIND_UNKNOWN"),
        (lambda files: files / "one/cat.png", "SOURCE_KIND_UNKNOWN"),
        (lambda files: files / "none.csv", "SOURCE_UNREADABLE"),
        (lambda _: "a\0b.jsonl", "SOURCE_UNREADABLE"),
        (lambda _: in_base64(as_file()) * 99, "FOLDER_NOT_FOUND"),
        (lambda _: [], "SOURCE_EMPTY"),
        (lambda _: hub_dataset(text=["a"]), "COLUMN_NOT_FOUND"),
        (lambda _: [{"image": as_file()}], "COLUMN_NOT_FOUND"),
    ],
)
def test_what_is_no_source_is_told(files: Path, make: Any, reason: str) -> None:
    with pytest.raises(InvalidSource) as caught:
        read_source(make(files))
    assert caught.value.reason == reason
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"file_name": "one/cat.png"}', "row 2: there is no column of captions"),
        ('{"file_name": ', "row 2: it is not JSON"),
        ('{"text": ' + "1" * 5000 + "}", "row 2: it is not JSON"),
        ("[" * 100_000, "row 2: it is not JSON"),
    ],
    ids=["column", "cut", "number", "deep"],
)
def test_bad_line_is_named(files: Path, line: str, problem: str) -> None:
    path = files / "rows.jsonl"
    path.write_text(f'{{"file_name": "one/cat.png", "text": "a"}}\n{line}\n')
    with pytest.raises(InvalidSource, match=problem):
        read_source(path)


def test_blank_lines_are_no_rows(files: Path) -> None:
    path = files / "rows.jsonl"
    path.write_text('{"file_name": "one/cat.png", "text": "a"}\n\n{"file_name": "two/cat.png", "text": "b"}\n\n')
    assert [image.name for image in read_source(path)] == ["cat.png", "cat-2.png"]


def test_thousands_of_rows_may_share_a_name(files: Path) -> None:
    begun_s = time.process_time()
    images = read_source([(files / "one/cat.png", "a")] * 10_000)
    assert images[-1].name == "cat-10000.png"
    assert time.process_time() - begun_s < 10  # over a minute when each of them was counted from one


def test_rows_may_share_an_image_that_pil_has_not_read_yet(tmp_path: Path) -> None:
    Image.effect_noise((1024, 1024), 90).save(tmp_path / "big.png")
    for _ in range(5):
        with Image.open(tmp_path / "big.png") as shared, ThreadPoolExecutor(8) as streams:
            rows = read_source([(shared, f"caption {number}") for number in range(8)])
            assert len(set(streams.map(CaptionedImage.read, rows))) == 1


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[1, 2\n", b"7\n"])
def test_file_that_holds_no_rows_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(InvalidSource):
        read_source(path)


def test_folder_is_read_as_ever(folder: Path) -> None:
    [image] = read_source(str(folder))
    assert (image.path, image.captions, image.name) == (folder / "a.png", ("a cat",), "a.png")
    with pytest.raises(InvalidFolder):
        read_source(folder / "none")


def test_dataset_is_made_of_pairs(client: Client, recorder: Recorder) -> None:
    def pairs() -> Iterator[tuple[Image.Image, str]]:
        yield picture(), "a cat"

    client.datasets.create_from(pairs(), name="cats", flip=True)
    headers = [part.sample for part in recorder.asked(encoder_pb2.UploadSamplesRequest) if part.HasField("sample")]
    assert [(header.sample_name, list(header.captions)) for header in headers] == [("000001.png", ["a cat"])]
    [encode] = recorder.asked(encoder_pb2.EncodeDatasetRequest)
    assert encode.options.flip


def test_captioned_images_are_taken_as_they_are() -> None:
    image = CaptionedImage(content=as_file(), captions=("a",), name="a", repeats=3)
    assert read_source([image]) == [image]
    with pytest.raises(InvalidSource, match="row 2: another row is called 'a' too"):
        read_source([image, image])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_is_read_as_spreadsheets_of_any_country_write_it(files: Path, encoding: str, delimiter: str) -> None:
    rows = [("file_name", "text", "note"), ("one/cat.png", "a cat; \u201csits\u201d, and, so, on", "x")]
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter).writerows(rows)
    mark = "\ufeff" if encoding == "utf-16-le" else ""
    (files / "ink.csv").write_bytes((mark + buffer.getvalue()).encode(encoding))
    assert [image.captions for image in read_source(files / "ink.csv")] == [(rows[1][1],)]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"file,text\none/cat.png,a cat, sitting\n", "row 1: it has 3 fields, and the first line names 2 columns"),
        (b"file,text\none/cat.png\n", "row 1: it has 1 fields, and the first line names 2 columns"),
        (b'file,text\none/cat.png,"a cat\n', "at line 2: a field that begins with a quote does not end"),
        (b'file,text\none/cat.png,"a "red" cat"\n', "row 1: it is not CSV at line 2"),
        (b"file,text\none/cat.png,a\0cat\n", "U\\+0000"),
        ("file,text\none/cat.png,a\n".encode("utf-16-le"), "it looks like UTF-16 without a byte order mark"),
        (b"file,text\none/cat.png,caf\xe9\n", "its text is not UTF-8"),
        (b"", "there is no row"),
    ],
)
def test_bad_csv_is_told_in_words(files: Path, content: bytes, problem: str) -> None:
    (files / "ink.csv").write_bytes(content)
    with pytest.raises(InvalidSource, match=problem) as caught:
        read_source(files / "ink.csv")
    assert caught.value.remedy


def test_captions_of_rows_have_plain_line_ends_and_any_space() -> None:
    rows: list[Any] = [(as_file(), "Mr\u00a0X\r\nsits"), CaptionedImage(content=b"x", captions=("a\rb",), name="a")]
    assert [image.captions for image in read_source(rows)] == [("Mr\u00a0X\nsits",), ("a\nb",)]


@pytest.mark.parametrize(
    ("name", "caption", "problem"),
    [
        ("a\nb", "a", "its name has the control character U\\+000A"),
        ("", "a", "its name is empty"),
        ("\u200b", "a", "its name has spaces and invisible characters alone"),
        ("x" * 201, "a", "its name has 201 characters"),
        ("a", "a\0b", "the caption has the control character U\\+0000"),
        ("a", "\u200b", "the caption is empty: it has invisible characters alone"),
    ],
)
def test_images_that_the_encoder_would_refuse_are_not_sent(
    client: Client, recorder: Recorder, name: str, caption: str, problem: str
) -> None:
    image = CaptionedImage(content=as_file(), captions=(caption,), name=name)
    with pytest.raises(InvalidSource, match=f"row 1: {problem}"):
        client.datasets.create_from([image])
    with pytest.raises(InvalidSource, match=problem):
        client.datasets.upload("d", [image])
    assert not recorder.requests
