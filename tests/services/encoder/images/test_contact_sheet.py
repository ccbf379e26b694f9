"""The contact sheet shows each picture, fits and survives any text, and marks what is masked and what is broken."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from services.common.contact_sheets import TILES_KEY, tiles_of
from services.encoder.images.contact_sheet import (
    MOST_CAPTIONS,
    PICTURE_PX,
    Tile,
    contact_sheet_png,
    draw_contact_sheet,
    thumbnail,
)

RED_INK = (179, 19, 27)


def tile(width: int = 64, height: int = 64, **changed: object) -> Tile:
    """A tile with a picture in one colour."""
    values = {
        "image": Image.new("RGB", (width, height), (0, 200, 0)),
        "heading": "a.png",
        "facts": f"{width} x {height} px",
        "captions": ("a meadow",),
    }
    return Tile(**(values | changed))  # type: ignore[arg-type]


def colored(sheet: Image.Image, color: tuple[int, int, int]) -> int:
    """How many pixels of the sheet have just this colour."""
    return int((np.asarray(sheet) == color).all(axis=-1).sum())


def test_sheet_is_a_grid_in_the_order_given() -> None:
    colors = [(10 * number, 0, 99) for number in range(1, 7)]
    sheet = draw_contact_sheet([tile(image=Image.new("RGB", (64, 64), color)) for color in colors], title="pictures")
    pixels = np.asarray(sheet)
    corners = [np.argwhere((pixels == color).all(axis=-1))[0] for color in colors]
    assert sheet.mode == "RGB"
    assert [corner[0] for corner in corners[:4]] == [corners[0][0]] * 4  # four to a row, their tops in line
    assert [corner[1] for corner in corners[4:]] == [corner[1] for corner in corners[:2]]
    assert [corner[1] for corner in corners[:4]] == sorted({corner[1] for corner in corners[:4]})
    assert corners[4][0] > corners[0][0] + PICTURE_PX


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 9])
def test_any_number_of_tiles_makes_a_sheet(count: int) -> None:
    sheet = draw_contact_sheet([tile()] * count, title="pictures")
    assert colored(sheet, (0, 200, 0)) == count * 256 * 256


def test_sheet_says_where_each_picture_lies_and_what_is_below_it() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    tiles = [tile(image=Image.fromarray(noise), captions=("日本",) * 6), tile(image=None, problem="it is damaged")]
    with Image.open(io.BytesIO(contact_sheet_png(tiles, title="pictures"))) as sheet:
        first, second = tiles_of(sheet)
        assert first.box
        assert np.array_equal(np.asarray(sheet.crop(first.box)), np.asarray(thumbnail(Image.fromarray(noise))))
    assert (first.heading, first.captions, first.more_captions) == ("a.png", ("日本",) * MOST_CAPTIONS, 2)
    assert (second.box, second.problem) == (None, "it is damaged")


@pytest.mark.parametrize("told", ["", "[", "{}", '[{"box": [0, 0, 9, 9]}]', '[{"box": [0,0,9,999999]}]', None])
def test_sheet_that_says_nothing_of_use_has_no_tiles(told: str | None) -> None:
    sheet = Image.new("RGB", (64, 64))
    sheet.info = {} if told is None else {TILES_KEY: told}
    assert tiles_of(sheet) == ()


def test_small_picture_is_scaled_up_by_whole_factors() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8))
    shown = thumbnail(picture)
    assert shown.size == (256, 192)
    assert np.array_equal(np.asarray(shown)[::4, ::4], np.asarray(picture))
    assert np.array_equal(np.asarray(shown)[3::4, 3::4], np.asarray(picture))


@pytest.mark.parametrize("size", [(1024, 1024), (1344, 768), (16, 16_176), (16_176, 16), (289, 100)])
def test_large_picture_is_scaled_down_into_its_square(size: tuple[int, int]) -> None:
    shown = thumbnail(Image.new("RGB", size, (0, 200, 0)))
    assert max(shown.size) == PICTURE_PX
    assert min(shown.size) >= 1
    assert shown.getpixel((0, 0)) == (0, 200, 0)


@pytest.mark.parametrize("mask_side", [8, 64, 512])
def test_what_is_masked_out_is_covered_by_checks(mask_side: int) -> None:
    mask = Image.new("L", (mask_side, mask_side), 0)
    mask.paste(255, (0, 0, mask_side // 2, mask_side))
    pixels = np.asarray(thumbnail(Image.new("RGB", (64, 64), (0, 200, 0)), mask)).reshape(256, 256, 3)
    assert (pixels[:, :120] == (0, 200, 0)).all()
    assert len(np.unique(pixels[:, 136:].reshape(-1, 3), axis=0)) == 2
    assert not (pixels[:, 136:] == (0, 200, 0)).all(axis=-1).any()


def test_sample_that_cannot_be_used_is_shown_with_its_problem_in_red() -> None:
    fine = draw_contact_sheet([tile()], title="pictures")
    broken = draw_contact_sheet([tile(image=None, problem="the image is damaged; export it again")], title="pictures")
    assert colored(fine, RED_INK) == 0
    assert colored(broken, RED_INK) > 1000
    assert colored(broken, (0, 200, 0)) == 0


def test_problem_of_a_picture_that_is_used_is_shown_beside_it() -> None:
    sheet = draw_contact_sheet([tile(problem="its colour profile was ignored")], title="pictures")
    assert colored(sheet, RED_INK) > 50
    assert colored(sheet, (0, 200, 0)) == 256 * 256


def test_each_caption_is_shown_and_too_many_are_counted() -> None:
    heights = [
        draw_contact_sheet([tile(captions=("a meadow",) * count)], title="pictures").height for count in range(9)
    ]
    most = MOST_CAPTIONS + 1  # and a line that says how many more
    assert len(set(heights[: most + 1])) == most + 1
    assert set(heights[most:]) == {heights[most]}


@pytest.mark.parametrize("caption", ["meadow " * 2000, "x" * 9000, "\u65e5" * 3000, "\u0301" * 3000])
def test_text_of_any_length_stays_within_its_card(caption: str) -> None:
    began = time.thread_time()
    sheet = draw_contact_sheet([tile(heading=caption, facts=caption, captions=(caption,) * 9)] * 2, title=caption)
    assert time.thread_time() - began < 2
    assert sheet.height < 900
    gap = np.asarray(sheet)[:, sheet.width // 2 - 6 : sheet.width // 2 + 6][100:]
    assert len(np.unique(gap.reshape(-1, 3), axis=0)) == 1  # nothing is written between the cards
    assert len(np.unique(np.asarray(sheet)[:, -12:].reshape(-1, 3), axis=0)) == 1


def test_text_is_cut_after_the_lines_that_fit() -> None:
    sheets = [
        draw_contact_sheet([tile(captions=(" ".join(["m" * 18] * lines),))], title="pictures") for lines in range(1, 6)
    ]
    heights = [sheet.height for sheet in sheets]
    assert heights == [*sorted(set(heights[:3])), heights[2], heights[2]]
    assert sheets[2].tobytes() != sheets[3].tobytes() == sheets[4].tobytes()  # an ellipsis


def test_what_cannot_be_drawn_is_written_as_its_number() -> None:
    for raw, escaped in (("\x07", "\\x07"), ("\u202eabc", "\\u202eabc"), ("\ue000", "\\ue000")):
        sheets = [draw_contact_sheet([tile(captions=(text,))], title="pictures").tobytes() for text in (raw, escaped)]
        assert sheets[0] == sheets[1]


def test_different_captions_look_different_in_every_script() -> None:
    captions = ["cat", "chat", "кошка", "γάτα", "猫", "犬", "🍎", "🍏", "\x07", "\x08", "\u202eabc", "abc", ""]
    sheets = {draw_contact_sheet([tile(captions=(caption,))], title="pictures").tobytes() for caption in captions}
    assert len(sheets) == len(captions)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40), st.lists(st.text(max_size=60), max_size=4), st.integers(1, 600), st.integers(1, 600))
def test_no_text_and_no_size_breaks_the_sheet(text: str, captions: list[str], width: int, height: int) -> None:
    sheet = draw_contact_sheet(
        [tile(width, height, heading=text, facts=text, captions=tuple(captions), problem=text)], title=text
    )
    assert sheet.width == 352


def test_same_tiles_make_the_same_sheet() -> None:
    first, again = (draw_contact_sheet([tile(), tile(32, 96)], title="pictures") for _ in range(2))
    assert first.tobytes() == again.tobytes()
