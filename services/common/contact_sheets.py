"""What a contact sheet says of itself, in the PNG file: where each picture lies and what is written below it.

The encoder writes it, and the trainer's report lays the pictures out anew, in its own colors and for any width.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

TILES_KEY = "fluxsmith.tiles"  # of the PNG's text chunk, which holds ASCII JSON


class SheetTile(BaseModel):
    """One picture of a contact sheet with its texts, each as far as it is worth showing."""

    model_config = ConfigDict(frozen=True)

    box: tuple[int, int, int, int] | None
    """Left, top, right and bottom of the picture on the sheet in px, without its margins; None if there is none."""
    heading: str
    """Name of the sample."""
    facts: str
    """Size, number of the crop, repeats."""
    captions: tuple[str, ...]
    """As the text encoders get them; perhaps not all."""
    more_captions: int = 0
    """How many there are besides."""
    problem: str = ""
    """What is wrong with the sample, or was passed over."""


_TILES = TypeAdapter(tuple[SheetTile, ...])


def described_png(sheet: Image.Image, tiles: Sequence[SheetTile]) -> bytes:
    """The sheet as a PNG file that says what is on it."""
    told = PngInfo()
    told.add_text(TILES_KEY, _TILES.dump_json(tuple(tiles), ensure_ascii=True).decode("ascii"))
    data = io.BytesIO()
    sheet.save(data, "PNG", pnginfo=told)
    return data.getvalue()


def tiles_of(sheet: Image.Image) -> tuple[SheetTile, ...]:
    """What a sheet says of itself; nothing if it was written without, or names a place outside itself."""
    try:
        tiles = _TILES.validate_json(str(sheet.info.get(TILES_KEY, "[]")))
    except ValidationError:
        return ()
    inside = all(_is_inside(tile.box, sheet.size) for tile in tiles if tile.box)
    return tiles if inside else ()


def _is_inside(box: tuple[int, int, int, int], size: tuple[int, int]) -> bool:
    left, top, right, bottom = box
    return 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]
