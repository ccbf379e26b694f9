"""Reading a folder: what becomes a sample, and that every fault is named before anything is sent."""

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from fluxsmith._folder import IMAGE_SUFFIXES, folder_name, read_folder, warn_of_left_out
from fluxsmith.errors import InvalidFolder


def add_image(folder: Path, name: str, caption: str | None = "a cat") -> None:
    (folder / name).write_bytes(b"image")
    if caption is not None:
        (folder / name).with_suffix(".txt").write_text(caption, encoding="utf-8")


def test_image_gets_the_caption_of_its_name(tmp_path: Path) -> None:
    add_image(tmp_path, "b.png", "a bird\n")
    add_image(tmp_path, "a.jpg", "an ant")
    (tmp_path / "notes.md").write_text("no image")
    samples = read_folder(tmp_path)
    assert [(sample.name, sample.captions) for sample in samples] == [("a.jpg", ("an ant",)), ("b.png", ("a bird",))]


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_suffix_counts_in_either_case(tmp_path: Path, suffix: str) -> None:
    add_image(tmp_path, f"a{suffix}")
    add_image(tmp_path, f"b{suffix.upper()}")
    assert [sample.name for sample in read_folder(tmp_path)] == [f"a{suffix}", f"b{suffix.upper()}"]


def test_caption_file_counts_in_either_case_and_with_byte_order_mark(tmp_path: Path) -> None:
    add_image(tmp_path, "a.png", None)
    (tmp_path / "a.TXT").write_text("a cat", encoding="utf-8-sig")
    assert read_folder(tmp_path)[0].captions == ("a cat",)


def test_hidden_files_and_folders_within_are_left_out(tmp_path: Path) -> None:
    add_image(tmp_path, "a.png")
    (tmp_path / "._a.png").write_bytes(b"left by another system")
    (tmp_path / "more.png").mkdir()
    assert [sample.name for sample in read_folder(tmp_path)] == ["a.png"]


def test_missing_folder_is_named_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(InvalidFolder, match="nowhere does not exist") as caught:
        read_folder(tmp_path / "nowhere")
    assert caught.value.reason == "FOLDER_NOT_FOUND"
    assert caught.value.remedy


NOBODY = 65534  # the user without rights


@pytest.fixture
def own_folder() -> Iterator[Path]:
    """A folder of the user that runs the test; root, who may read everything, becomes one without rights.

    It lies outside of pytest's own folders, into which that user has no way.
    """
    before = os.geteuid()
    with TemporaryDirectory() as folder:
        if before == 0:
            os.chown(folder, NOBODY, -1)
            os.seteuid(NOBODY)
        yield Path(folder)
        os.seteuid(before)


def test_folder_without_access_is_told(own_folder: Path) -> None:
    own_folder.chmod(0)
    with pytest.raises(InvalidFolder, match="cannot be read: Permission denied") as caught:
        read_folder(own_folder)
    own_folder.chmod(0o700)
    assert caught.value.reason == "FOLDER_UNREADABLE"


def test_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidFolder, match="file is not a folder"):
        read_folder(tmp_path / "file")


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a cat")
    with pytest.raises(InvalidFolder, match="holds no images") as caught:
        read_folder(tmp_path)
    assert caught.value.reason == "FOLDER_EMPTY"


def test_images_in_subfolders_are_counted_but_not_read(tmp_path: Path) -> None:
    for place in ("cats/old", ".hidden", "elsewhere"):
        (tmp_path / "nest" / place).mkdir(parents=True)
        add_image(tmp_path / "nest" / place, "a.PNG")
    add_image(tmp_path / "nest" / "cats", "._b.png")
    (tmp_path / "nest" / "link").symlink_to(tmp_path / "nest" / "cats")
    with pytest.raises(InvalidFolder, match="subfolders hold 2 images, but are not looked into") as caught:
        read_folder(tmp_path / "nest")
    assert caught.value.reason == "FOLDER_EMPTY"
    assert "Name one of the subfolders" in caught.value.remedy


def test_counting_in_subfolders_ends_somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluxsmith._folder.MOST_LOOKED_AT", 3)
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        add_image(tmp_path / name, "a.png", None)
    with pytest.raises(InvalidFolder, match="hold at least 2 images"):
        read_folder(tmp_path)


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    add_image(tmp_path, "a.png", None)
    add_image(tmp_path, "b.png", " \n")
    add_image(tmp_path, "c.png")
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe\xff")
    add_image(tmp_path, "d.png")
    (tmp_path / "d.png").write_bytes(b"")
    with pytest.raises(InvalidFolder) as caught:
        read_folder(tmp_path)
    assert caught.value.reason == "FOLDER_INVALID"
    for fault in (
        "1 image without a caption file: a.png",
        "1 image with an empty caption: b.png",
        "1 image with a caption that is not UTF-8 text: c.png",
        "1 image with no content: d.png",
    ):
        assert fault in caught.value.message


def test_ten_images_are_named_and_the_rest_counted(tmp_path: Path) -> None:
    for number in range(13):
        add_image(tmp_path, f"{number:02}.png", None)
    with pytest.raises(InvalidFolder, match=r"13 images without a caption file: 00\.png, .*09\.png and 3 more\."):
        read_folder(tmp_path)


def put_bytes(folder: Path, name: bytes, content: bytes) -> None:
    try:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(content)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")


def test_names_that_are_no_text_get_names_that_are(tmp_path: Path) -> None:
    for stem in (b"caf\xe8", b"caf\xe9"):
        put_bytes(tmp_path, stem + b".png", b"image")
        put_bytes(tmp_path, stem + b".txt", b"a cat")
    images = read_folder(tmp_path)
    assert [image.name for image in images] == ["caf_.png", "caf_-2.png"]
    assert [image.read() for image in images] == [b"image"] * 2


@pytest.mark.parametrize(
    "stem",
    ["3.04.00\u202fPM", "a\u00a0b", "\u6771\u3000\u4eac", "\U0001f468\u200d\U0001f469", "\u05e9\u200f", " ", "\u200b"],
)
def test_names_may_have_any_space_and_any_joined_character(tmp_path: Path, stem: str) -> None:
    add_image(tmp_path, f"{stem}.png")
    [image] = read_folder(tmp_path)
    assert (image.name, image.captions) == (f"{stem}.png", ("a cat",))


@pytest.mark.parametrize(("stem", "name"), [("a\nb", "a_b.png"), ("x" * 240, f"{'x' * 186}.png"), ("a\x85", "a_.png")])
def test_names_that_no_sample_may_have_are_made_valid(tmp_path: Path, stem: str, name: str) -> None:
    add_image(tmp_path, f"{stem}.png")
    assert [image.name for image in read_folder(tmp_path)] == [name]


@pytest.mark.parametrize(
    ("image", "caption"), [("e\u0301", "\u00e9"), ("\u00e9", "e\u0301"), ("\uac00", "\u1100\u1161")]
)
def test_composed_and_decomposed_names_are_one_name(tmp_path: Path, image: str, caption: str) -> None:
    (tmp_path / f"{image}.png").write_bytes(b"image")
    (tmp_path / f"{caption}.txt").write_text("a cat")
    assert read_folder(tmp_path)[0].captions == ("a cat",)
    assert read_folder(tmp_path).left_out == ()


def test_of_two_captions_that_look_alike_the_one_of_the_very_name_counts(tmp_path: Path) -> None:
    for stem in ("e\u0301", "\u00e9"):
        add_image(tmp_path, f"{stem}.png", f"caption of {len(stem)}")
    assert [image.captions[0] for image in read_folder(tmp_path)] == ["caption of 2", "caption of 1"]


def test_pictures_of_one_stem_share_its_caption(tmp_path: Path) -> None:
    add_image(tmp_path, "a.png")
    add_image(tmp_path, "a.JPG")
    assert [(image.name, image.captions) for image in read_folder(tmp_path)] == [
        ("a.JPG", ("a cat",)),
        ("a.png", ("a cat",)),
    ]


def test_two_caption_files_of_one_picture_are_a_fault(tmp_path: Path) -> None:
    add_image(tmp_path, "a.png")
    (tmp_path / "a.TXT").write_text("a dog")
    if len(list(tmp_path.iterdir())) < 3:
        pytest.skip("this file system knows one case of letters only")
    with pytest.raises(InvalidFolder, match=r"1 image with several caption files: a\.png \(a\.TXT, a\.txt\)"):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("a cat".encode("utf-16-le"), "that is not UTF-8 text: a.png (it looks like UTF-16 without a byte order mark)"),
        ("a cat".encode("utf-16-be"), "that is not UTF-8 text: a.png (it looks like UTF-16 without a byte order mark)"),
        (b"a\0b", "no text may have: a.png (has the control character U+0000 at place 2)"),
        ("\u8272".encode("utf-16-le"), "that is not UTF-8 text: a.png"),
        (b"caf\xe9", "that is not UTF-8 text: a.png"),
        (b"a \0 cat", "no text may have: a.png (has the control character U+0000 at place 3)"),
        (b"a \x1b[2J", "no text may have: a.png (has the control character U+001B at place 3)"),
        ("\u200b\ufeff\u2800".encode(), "with an empty caption: a.png (invisible characters alone)"),
        (b"", "with an empty caption: a.png"),
    ],
)
def test_captions_that_are_no_text_are_named_with_what_they_are(tmp_path: Path, content: bytes, fault: str) -> None:
    add_image(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(InvalidFolder) as caught:
        read_folder(tmp_path)
    assert fault in caught.value.message


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize(
    "caption",
    [
        "na\u00efve",
        "\u043a\u043e\u0442, sks",
        "\u03b3\u03ac\u03c4\u03b1",
        "\u05d7\u05ea\u05d5\u05dc",
        "\uace0\uc591\uc774 cat",
    ],
    ids=["Latin", "Cyrillic", "Greek", "Hebrew", "Korean"],
)
def test_wide_characters_without_a_mark_are_called_so(tmp_path: Path, caption: str, encoding: str) -> None:
    add_image(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes(caption.encode(encoding))
    with pytest.raises(InvalidFolder, match=f"looks like {encoding[:6].upper()} without a byte order mark"):
        read_folder(tmp_path)


def test_marks_left_within_a_caption_are_taken_out(tmp_path: Path) -> None:
    add_image(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf\xef\xbb\xbfa cat,\xef\xbb\xbf ink")
    assert read_folder(tmp_path)[0].captions == ("a cat, ink",)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_captions_with_a_mark_and_lines_of_any_system_are_read(tmp_path: Path, encoding: str, end: str) -> None:
    add_image(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes(f"Mr\u00a0\u732b{end}\tsits{end}".encode(encoding))
    assert read_folder(tmp_path)[0].captions == ("Mr\u00a0\u732b\n\tsits",)


def test_what_is_left_out_is_told_in_one_line_and_as_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    style = tmp_path / "style"
    style.mkdir()
    add_image(style, "p.png")
    for name in ("q.jp2", "r.tga", "gone.txt", ".hidden.png", ".DS_Store", "Thumbs.db", "._p.png"):
        (style / name).write_bytes(b"x")
    (style / "more").mkdir()
    add_image(style / "more", "s.png")
    (style / "linked.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(style / "pipe.png")
    images = read_folder(style)
    assert [image.name for image in images] == ["p.png"]
    assert {entry.name for entry in images.left_out} == {
        ".hidden.png", "gone.txt", "linked.png", "more", "pipe.png", "q.jp2", "r.tga",
    }  # fmt: skip
    assert images.left_out_line == (
        f"left out of {style}: 2 files of other formats (q.jp2, r.tga); 1 caption without a picture (gone.txt); "
        "1 link that leads nowhere (linked.png); 1 subfolder, which is not looked into (more); "
        "1 hidden picture or caption (.hidden.png); 1 entry that is neither file nor folder (pipe.png); "
        "subfolders hold 1 image"
    )
    warn_of_left_out(images)
    assert caplog.messages == [images.left_out_line]


def test_images_at_fault_are_left_out_if_that_is_wanted(tmp_path: Path) -> None:
    add_image(tmp_path, "a.png")
    add_image(tmp_path, "b.png", None)
    add_image(tmp_path, "c.png", " ")
    add_image(tmp_path, "d.png")
    (tmp_path / "d.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InvalidFolder, match="skip_bad_samples=True"):
        read_folder(tmp_path)
    images = read_folder(tmp_path, skip_bad_samples=True)
    assert [image.name for image in images] == ["a.png"]
    assert images.left_out_line == (
        f"left out of {tmp_path}: 1 image without a caption file (b.png); 1 image with an empty caption (c.png); "
        "1 image with a caption that is not UTF-8 text (d.png)"
    )
    with pytest.raises(InvalidFolder, match=r"at most a share of 0\.5 may be left out"):
        read_folder(tmp_path, skip_bad_samples=True, max_bad_share=0.5)
    (tmp_path / "a.txt").unlink()
    with pytest.raises(InvalidFolder, match="2 images without a caption file") as caught:
        read_folder(tmp_path, skip_bad_samples=True)
    assert "skip_bad_samples" not in caught.value.remedy


def test_a_table_of_captions_is_named_with_what_reads_it(tmp_path: Path) -> None:
    add_image(tmp_path, "a.png", None)
    (tmp_path / "metadata.jsonl").write_text("{}")
    with pytest.raises(InvalidFolder, match=r"captions may be in metadata\.jsonl") as caught:
        read_folder(tmp_path)
    assert "create_from(" in caught.value.remedy
    with pytest.raises(InvalidFolder, match=r"metadata\.jsonl is not a folder") as caught:
        read_folder(tmp_path / "metadata.jsonl")
    assert "create_from(" in caught.value.remedy


@pytest.mark.parametrize("picture", ["q0.jp2", "q3.jpe"])
def test_a_caption_beside_a_picture_of_another_format_counts_with_it(tmp_path: Path, picture: str) -> None:
    add_image(tmp_path, "a.png")
    add_image(tmp_path, picture)
    (tmp_path / "gone.txt").write_text("a cat")
    (tmp_path / "gone.json").write_text("{}")
    whys = {entry.name: entry.why for entry in read_folder(tmp_path).left_out}
    other = "file of another format"
    assert whys == {picture: other, "gone.json": other, "gone.txt": "caption without a picture"}


def test_nothing_is_said_of_a_folder_of_which_all_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    add_image(tmp_path, "p.png")
    warn_of_left_out(read_folder(tmp_path))
    assert not caplog.messages


def test_a_folder_of_other_formats_alone_names_them(tmp_path: Path) -> None:
    (tmp_path / "a.jp2").write_bytes(b"x")
    with pytest.raises(InvalidFolder, match=r"holds no images; there are 1 file of another format \(a\.jp2\)"):
        read_folder(tmp_path)


def test_picture_without_access_is_told_before_anything_is_sent(own_folder: Path) -> None:
    add_image(own_folder, "a.png")
    (own_folder / "a.png").chmod(0)
    with pytest.raises(InvalidFolder, match=r"1 image that cannot be read: a\.png"):
        read_folder(own_folder)


@pytest.mark.parametrize(
    ("name", "called"), [("a\nb", "a_b"), ("Mr\u00a0X", "Mr\u00a0X"), ("\u200b", ""), ("x" * 250, "x" * 200)]
)
def test_folder_is_called_something_that_can_be_sent(tmp_path: Path, name: str, called: str) -> None:
    (tmp_path / name).mkdir()
    assert folder_name(tmp_path / name) == called


def test_folder_that_links_to_itself_is_told(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert folder_name(tmp_path / "loop") == "loop"
    with pytest.raises(InvalidFolder, match="does not exist"):
        read_folder(tmp_path / "loop")


def test_folder_is_called_by_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    style = tmp_path / "ink-line"
    style.mkdir()
    monkeypatch.chdir(style)
    assert folder_name(Path()) == "ink-line"
    assert folder_name(Path("../ink-line/")) == "ink-line"
