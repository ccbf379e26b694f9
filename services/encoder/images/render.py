"""Contact sheets of datasets: what training will see of a page of samples, drawn without any model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from itertools import chain

from PIL import Image

from services.common.cache import CachedObject, dataset_prefix
from services.common.captions import with_trigger
from services.common.object_store import ObjectDamaged, ObjectMissing
from services.encoder.datasets import Datasets
from services.encoder.images.contact_sheet import Tile, contact_sheet_png, thumbnail
from services.encoder.images.decoding import decode
from services.encoder.images.views import Variant, View, variants_of, views_of
from services.encoder.overlap import overlapped
from services.encoder.problems import BadSample, Problem
from services.encoder.records import EncodingOptions, SampleRecord

AHEAD = 4
MOST_TILES = 400  # a sheet of 1,300 x 45,000 px


def samples_a_sheet(asked: int, options: EncodingOptions) -> int:
    """Samples on one sheet: as many as asked for, fewer where each has many variants."""
    return min(asked, MOST_TILES // options.variant_count)


class ContactSheets:
    """Draws contact sheets into the store, beside the dataset."""

    def __init__(
        self,
        datasets: Datasets,
        executor: Executor,
        *,
        unread: Callable[[str], Iterable[tuple[Problem, str]]],
        max_image_pixels: int,
    ) -> None:
        self._datasets = datasets
        self._executor = executor
        self._unread = unread
        self._max_image_pixels = max_image_pixels

    def render(
        self, tenant: str, dataset_id: str, records: Sequence[SampleRecord], options: EncodingOptions, *, title: str
    ) -> CachedObject:
        """Draw these samples as a PNG under the digest of its bytes."""
        tiles = overlapped(
            records,
            lambda record: list(self._tiles(tenant, dataset_id, record, options)),
            self._executor,
            ahead=AHEAD,
        )
        data = contact_sheet_png(list(chain.from_iterable(tiles)), title=title)
        key = f"{dataset_prefix(tenant, dataset_id)}contact_sheets/{hashlib.sha256(data).hexdigest()}.png"
        stored = self._datasets.store.put(key, data, content_type="image/png")
        return CachedObject(key=stored.key, digest=stored.digest, size_bytes=stored.size_bytes)

    def _tiles(self, tenant: str, dataset_id: str, record: SampleRecord, options: EncodingOptions) -> Iterator[Tile]:
        captions = tuple(with_trigger(caption, options.trigger_word) for caption in record.captions)
        try:
            data = self._datasets.image(tenant, dataset_id, record)
            decoded = decode(data, max_pixels=self._max_image_pixels, background=options.background_rgb)
            views = views_of(decoded, options)
        except (BadSample, ObjectMissing, ObjectDamaged) as error:
            yield Tile(image=None, heading=record.sample_name, facts="", captions=captions, problem=error.message)
            return
        warnings = [message for _, message in decoded.warnings]
        for caption in captions:
            warnings += [what for _, what in self._unread(caption)]
        for view in views:
            for variant in variants_of(decoded, view, options):
                yield Tile(
                    image=thumbnail(variant.image, _mask(variant)),  # now: whole crops of a page would fill the memory
                    heading=record.sample_name,
                    facts=_facts(record, view, variant),
                    captions=captions,
                    problem="; ".join(warnings),
                )


def _facts(record: SampleRecord, view: View, variant: Variant) -> str:
    facts = [f"{view.bucket.width_px} x {view.bucket.height_px} px"]
    if len(view.crops) > 1:
        facts.append(f"variant {view.crops.index(variant.crop) + 1} of {len(view.crops)}")
    if variant.crop.mirrored:
        facts.append("mirrored")
    if record.repeats > 1:
        facts.append(f"{record.repeats} times an epoch")
    return ", ".join(facts)


def _mask(variant: Variant) -> Image.Image | None:
    if variant.mask_1hw is None:
        return None
    return Image.fromarray((variant.mask_1hw[0] * 255).round().astype("uint8"))
