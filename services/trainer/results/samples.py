"""The pictures of a dataset for the report, cut out of the encoder's contact sheet with their texts.

Laid out by the page itself they have its colors, dark ones too, and fit a phone; the sheet is one wide white picture.
"""

from __future__ import annotations

import io
from collections.abc import Collection
from dataclasses import dataclass

from PIL import Image

from services.common.contact_sheets import SheetTile, tiles_of
from services.trainer.results.history import Picture, small_picture

MOST_SHOWN = 120  # a page of the encoder has 24 samples, each with some variants; 120 pictures are about 1 MB


@dataclass(frozen=True, kw_only=True)
class ShownSample:
    """One picture of the dataset with what is known of it."""

    tile: SheetTile
    picture: Picture | None
    """None for a sample that cannot be used."""
    held_out: bool


def shown_samples(sheet_png: bytes, held_out_names: Collection[str]) -> tuple[list[ShownSample], int]:
    """The first samples of a contact sheet, and how many pictures there are besides; none if it does not say."""
    with Image.open(io.BytesIO(sheet_png)) as sheet:
        tiles = tiles_of(sheet)
        shown = [
            ShownSample(
                tile=tile,
                picture=_cut_out(sheet, tile.box) if tile.box else None,
                held_out=tile.heading in held_out_names,
            )
            for tile in tiles[:MOST_SHOWN]
        ]
    return shown, len(tiles) - len(shown)


def _cut_out(sheet: Image.Image, box: tuple[int, int, int, int]) -> Picture:
    data = io.BytesIO()
    sheet.crop(box).save(data, "PNG")
    return small_picture(data.getvalue())
