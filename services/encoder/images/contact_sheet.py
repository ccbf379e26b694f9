"""A picture of what the trainer will see: every crop with its size and captions, and what cannot be used and why."""

from __future__ import annotations

import contextlib
import importlib.util
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from services.common.contact_sheets import SheetTile, described_png

COLUMNS = 4
PICTURE_PX = 288  # the square that a picture is fitted into
PADDING_PX = 14  # inside a card
GAP_PX = 18  # between cards, and around them
MOST_CAPTIONS = 4
MOST_LINES = 3  # of one caption
MOST_CHARACTERS = 400  # of one text; more would not be shown, and measuring it costs time

PAPER, CARD, EDGE, WELL = "#eef0f3", "#ffffff", "#d5d9e0", "#e4e7ec"
INK, PALE_INK, RED, PALE_RED = "#15181d", "#667080", "#b3131b", "#fbe9ea"
CHECKS = ("#b9bec8", "#ffffff")
CHECK_PX = 8
MASK_STRENGTH = 0.8  # of the checks over what is masked out; the rest is the picture, to recognise it by

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Box = tuple[int, int, int, int]  # left, top, right, bottom in px


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One picture as the trainer sees it."""

    image: Image.Image | None
    """The crop (RGB); None for a sample that cannot be used."""

    heading: str
    """Name of the sample."""

    facts: str
    """Size, number of the crop, repeats: one line."""

    captions: tuple[str, ...]
    """As the text encoders get them."""

    problem: str = ""
    """What is wrong with the sample, or was passed over."""

    mask: Image.Image | None = None
    """What the loss counts (L, 255 counts), of any size; None if it counts everything."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of text, cut to fit its card."""

    text: str
    size_px: int
    color: str
    space_above_px: int = 0

    @property
    def height_px(self) -> int:
        """What the line takes, with the space above it."""
        return self.space_above_px + round(self.size_px * 1.35)


def contact_sheet_png(tiles: Sequence[Tile], *, title: str) -> bytes:
    """The sheet as a PNG file that says what is on it, so that others can lay it out in another way."""
    sheet, boxes = _drawn(tiles, title)
    told = [
        SheetTile(
            box=box,
            heading=tile.heading[:MOST_CHARACTERS],
            facts=tile.facts[:MOST_CHARACTERS],
            captions=tuple(caption[:MOST_CHARACTERS] for caption in tile.captions[:MOST_CAPTIONS]),
            more_captions=max(0, len(tile.captions) - MOST_CAPTIONS),
            problem=tile.problem[:MOST_CHARACTERS],
        )
        for tile, box in zip(tiles, boxes, strict=True)
    ]
    return described_png(sheet, told)


def draw_contact_sheet(tiles: Sequence[Tile], *, title: str) -> Image.Image:
    """Draw the tiles in their order, four to a row. A tile takes half a megabyte of memory: pass a few hundred."""
    return _drawn(tiles, title)[0]


def _drawn(tiles: Sequence[Tile], title: str) -> tuple[Image.Image, list[Box | None]]:
    """The sheet, and where the picture of each tile lies on it."""
    columns = max(1, min(COLUMNS, len(tiles)))
    width_px = GAP_PX + columns * (_card_width_px() + GAP_PX)
    heading = _wrap(title, 24, INK, width_px - 2 * GAP_PX, most_lines=2)
    rows = [[(tile, _lines(tile)) for tile in tiles[at : at + columns]] for at in range(0, len(tiles), columns)]
    heights_px = [max(_card_height_px(lines) for _, lines in row) for row in rows]
    top_px = GAP_PX + sum(line.height_px for line in heading) + GAP_PX // 2
    sheet = Image.new("RGB", (width_px, top_px + sum(heights_px) + GAP_PX * max(1, len(rows))), PAPER)
    draw = ImageDraw.Draw(sheet)
    _write(draw, heading, GAP_PX, GAP_PX)
    boxes = []
    for row, height_px in zip(rows, heights_px, strict=True):
        for column, (tile, lines) in enumerate(row):
            left_px = GAP_PX + column * (_card_width_px() + GAP_PX)
            boxes.append(_draw_card(draw, sheet, tile, lines, (left_px, top_px), height_px))
        top_px += height_px + GAP_PX
    return sheet, boxes


def _card_width_px() -> int:
    return PICTURE_PX + 2 * PADDING_PX


def _card_height_px(lines: list[Line]) -> int:
    return PICTURE_PX + 2 * PADDING_PX + sum(line.height_px for line in lines)


def _draw_card(
    draw: ImageDraw.ImageDraw, sheet: Image.Image, tile: Tile, lines: list[Line], at: tuple[int, int], height_px: int
) -> Box | None:
    left_px, top_px = at
    corner = (left_px + _card_width_px() - 1, top_px + height_px - 1)
    draw.rounded_rectangle((at, corner), radius=6, fill=CARD, outline=RED if tile.image is None else EDGE)
    left_px, top_px = left_px + PADDING_PX, top_px + PADDING_PX
    well = (left_px, top_px, left_px + PICTURE_PX - 1, top_px + PICTURE_PX - 1)
    draw.rectangle(well, fill=PALE_RED if tile.image is None else WELL)
    box = None
    if tile.image is None:
        reach_px = PICTURE_PX // 6
        for sign in (-1, 1):
            x, y = left_px + PICTURE_PX // 2, top_px + PICTURE_PX // 2
            draw.line((x - reach_px, y - sign * reach_px, x + reach_px, y + sign * reach_px), fill=RED, width=5)
    else:
        shown = thumbnail(tile.image, tile.mask)
        x, y = left_px + (PICTURE_PX - shown.width) // 2, top_px + (PICTURE_PX - shown.height) // 2
        box = (x, y, x + shown.width, y + shown.height)
        sheet.paste(shown, (x, y))
    _write(draw, lines, left_px, top_px + PICTURE_PX)
    return box


def thumbnail(image: Image.Image, mask: Image.Image | None = None) -> Image.Image:
    """The picture scaled into its square, small ones by whole factors so that each pixel stays one, checks on top."""
    factor = PICTURE_PX / max(image.size)
    if factor >= 1:
        size = (image.width * int(factor), image.height * int(factor))
        shown = image.resize(size, Image.Resampling.NEAREST)
    else:
        size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        shown = image.resize(size, Image.Resampling.LANCZOS)
    shown = shown.convert("RGB")
    if mask is None:
        return shown
    smaller = mask.width <= size[0]
    kept = mask.convert("L").resize(size, Image.Resampling.NEAREST if smaller else Image.Resampling.BOX)
    return Image.composite(shown, Image.blend(shown, _checks(size), MASK_STRENGTH), kept)


def _checks(size: tuple[int, int]) -> Image.Image:
    checks = Image.new("RGB", size, CHECKS[0])
    draw = ImageDraw.Draw(checks)
    for y in range(0, size[1], CHECK_PX):
        for x in range(y // CHECK_PX % 2 * CHECK_PX, size[0], 2 * CHECK_PX):
            draw.rectangle((x, y, x + CHECK_PX - 1, y + CHECK_PX - 1), fill=CHECKS[1])
    return checks


def _lines(tile: Tile) -> list[Line]:
    """All that is written on a card, top to bottom."""
    lines = _wrap(tile.heading, 17, INK, PICTURE_PX, most_lines=1, space_above_px=10)
    lines += _wrap(tile.facts, 13, PALE_INK, PICTURE_PX, most_lines=2, space_above_px=1)
    lines += _wrap(tile.problem, 14, RED, PICTURE_PX, most_lines=5, space_above_px=7)
    for caption in tile.captions[:MOST_CAPTIONS]:
        lines += _wrap(caption or "(the empty caption)", 14, INK, PICTURE_PX, most_lines=MOST_LINES, space_above_px=7)
    if (more := len(tile.captions) - MOST_CAPTIONS) > 0:
        lines += _wrap(f"and {more} more captions", 13, PALE_INK, PICTURE_PX, most_lines=1, space_above_px=7)
    return lines


def _write(draw: ImageDraw.ImageDraw, lines: list[Line], left_px: int, top_px: int) -> None:
    for line in lines:
        draw.text((left_px, top_px + line.space_above_px), line.text, fill=line.color, font=_font(line.size_px))
        top_px += line.height_px


def _wrap(
    text: str, size_px: int, color: str, width_px: int, *, most_lines: int, space_above_px: int = 0
) -> list[Line]:
    """Break the text at spaces, or in a word that is wider than a line; what is too much ends in an ellipsis."""
    legible = _legible(text[: MOST_CHARACTERS + 1])
    cut, words = len(legible) > MOST_CHARACTERS, legible[:MOST_CHARACTERS].split()
    rows, font = [""], _font(size_px)
    while words and len(rows) <= most_lines:
        joined = f"{rows[-1]} {words[0]}".lstrip()
        if font.getlength(joined) <= width_px:
            rows[-1], words = joined, words[1:]
        elif rows[-1]:
            rows.append("")
        else:
            ends = range(1, len(words[0]))
            fits = max(1, bisect_right(ends, float(width_px), key=lambda end: font.getlength(words[0][:end])))
            rows[-1], words[0] = words[0][:fits], words[0][fits:]
    if len(rows) > most_lines or cut:
        rows = rows[:most_lines]
        while font.getlength(f"{rows[-1]}…") > width_px:
            rows[-1] = rows[-1][:-1]
        rows[-1] = rows[-1].rstrip() + "…"
    spaces = [space_above_px] + [0] * len(rows)
    return [
        Line(text=row, size_px=size_px, color=color, space_above_px=space)
        for row, space in zip(rows, spaces, strict=False)
        if row
    ]


def _legible(text: str) -> str:
    """The text with only what the font can draw."""
    return "".join(_drawn_as(character) for character in text)


@cache
def _drawn_as(character: str) -> str:
    """The character, or else its letter without the accent, or else its number, which says more than an empty box."""
    if character.isspace() or _can_draw(character):
        return character
    bare = "".join(part for part in unicodedata.normalize("NFKD", character) if _can_draw(part))
    return bare or ascii(character)[1:-1]


@cache
def _can_draw(character: str) -> bool:
    if unicodedata.category(character)[0] == "C":  # control characters, and those that turn the reading order round
        return False
    font = _font(16)
    return bytes(font.getmask(character)) != bytes(font.getmask("\uffff"))


@cache
def _font(size_px: int) -> Font:
    """DejaVu Sans if the machine has it, for most alphabets; else what Pillow brings, which knows little but ASCII."""
    matplotlib = importlib.util.find_spec("matplotlib")  # not imported: it only happens to bring the font
    brought = Path(matplotlib.origin or "").parent / "mpl-data/fonts/ttf" if matplotlib else Path()
    for name in ("DejaVuSans.ttf", brought / "DejaVuSans.ttf"):
        with contextlib.suppress(OSError):
            return ImageFont.truetype(name, size_px)
    return ImageFont.load_default(size_px)
