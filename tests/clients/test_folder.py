"""Reading a folder: what becomes a sample, and that every fault is named before anything is sent."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fluxsmith._folder import IMAGE_SUFFIXES, folder_name, read_folder
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


@pytest.fixture
def nobody() -> Iterator[None]:
    """Run without the rights of root, who may read everything."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    yield
    os.seteuid(before)


def test_folder_without_access_is_told(tmp_path: Path, nobody: None) -> None:
    if os.access(tmp_path, os.R_OK, effective_ids=True):
        tmp_path.chmod(0)
    with pytest.raises(InvalidFolder, match="cannot be read: Permission denied") as caught:
        read_folder(tmp_path)
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


def test_name_that_is_no_text_is_a_fault(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.png"
    try:
        Path(os.fsdecode(path)).write_bytes(b"image")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(InvalidFolder, match="1 image with a name that is not UTF-8") as caught:
        read_folder(tmp_path)
    str(caught.value).encode()


def test_folder_is_called_by_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    style = tmp_path / "ink-line"
    style.mkdir()
    monkeypatch.chdir(style)
    assert folder_name(Path()) == "ink-line"
    assert folder_name(Path("../ink-line/")) == "ink-line"
