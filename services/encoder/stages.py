"""The three stages that a sample goes through: prepare (decode, crop, look up), compute (the models), store (upload).

Each is a function of what the stage before gave, so that `encoding.py` can let them overlap: prepare and store run in
threads, compute in the run's own, which waits for the model thread.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import PIL
import pillow_heif
import torch
from fluxsmith_text import quoted
from torch import Tensor

from services.common import cache
from services.common.cache import CachedCaption, CachedObject, CachedSample, CachedVariant, CachedView
from services.common.captions import TRIGGER_PLACE, with_trigger
from services.common.object_store import ObjectDamaged, ObjectMissing
from services.encoder.datasets import Datasets
from services.encoder.images.buckets import Bucket, pixels
from services.encoder.images.decoding import decode, pixel_digest
from services.encoder.images.views import Variant, variants_of, views_of
from services.encoder.models import EncoderModels, ModelThread
from services.encoder.problems import BadSample, Problem
from services.encoder.records import EncodingOptions, SampleProblem, SampleRecord
from services.encoder.tensor_cache import IndexEntry, NewObject, Recipe, TensorCache
from services.encoder.unread import shortened, unread

CAPTION_SHOWN = 40
CAPTIONS_WARNED_OF = 4  # of one sample; thousands of samples with many captions each would fill every answer
_REMEDIES = {
    Problem.CAPTION_TRUNCATED: "shorten it, or leave it",
    Problem.CAPTION_UNREADABLE: "write it in other words or letters, or leave it",
}
DECODERS = f"Pillow {PIL.__version__} pillow-heif {pillow_heif.__version__}"


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Time that a sample took in each stage."""

    prepare: float = 0.0
    compute: float = 0.0
    store: float = 0.0

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(
            prepare=self.prepare + other.prepare, compute=self.compute + other.compute, store=self.store + other.store
        )


NO_TIME = Seconds()


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One cached object that a sample needs: what it is computed from and how, or where it was found."""

    kind: str
    recipe: Recipe
    compute: Callable[[EncoderModels], Mapping[str, Tensor]]
    found: CachedObject | None


@dataclass(frozen=True, kw_only=True)
class WantedView:
    """The objects of one view: latents, and masks where there are any."""

    bucket: Bucket
    variants: tuple[tuple[Wanted, Wanted | None], ...]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A sample that has been decoded and looked up. `entry` when nothing of it is left to be computed."""

    record: SampleRecord
    entry: IndexEntry | None = None
    picture_digest: str = ""
    """Of its first crop: pictures that training cannot tell apart are the same."""
    views: tuple[WantedView, ...] = ()
    captions: tuple[tuple[str, Wanted], ...] = ()
    warnings: tuple[tuple[Problem, str], ...] = ()
    lost: tuple[str, ...] = ()
    """Keys of cached objects that an earlier encoding wrote and that are damaged or missing."""
    bad: BadSample | None = None
    read_bytes: int = 0
    seconds: Seconds = NO_TIME


@dataclass(frozen=True, kw_only=True)
class Computed:
    """A sample of which everything is known and `new` is still to be written."""

    prepared: Prepared
    entry: IndexEntry | None
    new: tuple[NewObject, ...] = ()
    bad: BadSample | None = None
    seconds: Seconds = NO_TIME


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of a sample: its cached form, or why there is none. `cached` means that no model had to run."""

    record: SampleRecord
    sample: CachedSample | None
    picture_digest: str
    problems: tuple[SampleProblem, ...]
    cached: bool
    read_bytes: int
    written_bytes: int
    seconds: Seconds


class Stages:
    """The stages of one encoding of one dataset."""

    def __init__(
        self,
        datasets: Datasets,
        tensors: TensorCache,
        models: ModelThread,
        *,
        tenant: str,
        dataset_id: str,
        options: EncodingOptions,
        max_image_pixels: int,
    ) -> None:
        self._datasets = datasets
        self._tensors = tensors
        self._models = models
        self._tenant = tenant
        self._dataset_id = dataset_id
        self._options = options
        self._max_image_pixels = max_image_pixels
        self._new_captions: set[str] = set()  # keys of what a round for captions has computed
        self._known: dict[bytes, CachedObject] = {}  # of this run, by recipe or key: looked up or computed once

    def prepare(self, record: SampleRecord) -> Prepared:
        """Find everything that is cached already, and get ready what is not. Raises `Unavailable` only."""
        began_s = time.monotonic()
        entry = self._tensors.entry(self._recipe(record))
        lost = tuple(cached.key for cached in entry.sample.objects() if not self._sound(cached)) if entry else ()
        if entry and not lost:
            sample = entry.sample.model_copy(update=_of_the_dataset(record))
            prepared = Prepared(record=record, entry=entry.model_copy(update={"sample": sample}))
        else:
            try:
                prepared = replace(self._decoded(record), lost=lost)
            except BadSample as error:
                prepared = Prepared(record=record, bad=error)
        return replace(prepared, seconds=Seconds(prepare=time.monotonic() - began_s))

    def prepare_captions(self, record: SampleRecord) -> Prepared:
        """The same for the captions alone: for encoders that hold one kind of model at a time."""
        return Prepared(record=record, captions=tuple(self._captions(record)))

    def compute(self, prepared: Prepared) -> Computed:
        """Run the models for what the cache lacks."""
        if prepared.entry or prepared.bad:
            return Computed(prepared=prepared, entry=prepared.entry, bad=prepared.bad, seconds=prepared.seconds)
        began_s = time.monotonic()
        new: list[NewObject] = []
        try:
            sample = self._sample(prepared, new)
        except BadSample as error:
            return Computed(prepared=prepared, entry=None, bad=error, seconds=prepared.seconds)
        warnings = (*prepared.warnings, *self._unread(sample))
        entry = IndexEntry(picture_digest=prepared.picture_digest, sample=sample, warnings=warnings)
        seconds = prepared.seconds + Seconds(compute=time.monotonic() - began_s)
        return Computed(prepared=prepared, entry=entry, new=tuple(new), seconds=seconds)

    def store(self, computed: Computed) -> Verdict:
        """Write what is new, the index entry last."""
        began_s = time.monotonic()
        prepared, entry = computed.prepared, computed.entry
        for new in computed.new:
            self._tensors.write(new)
        keys = {new.cached.key for new in computed.new}
        if not prepared.views:  # a round for captions, whose sample is still to come
            self._new_captions |= keys
        used = {caption.embedding.key for caption in entry.sample.captions} if entry else set()
        if entry and entry is not prepared.entry and entry.sample.views:
            self._tensors.write_entry(self._recipe(prepared.record), entry)
        return Verdict(
            record=prepared.record,
            sample=entry.sample if entry else None,
            picture_digest=entry.picture_digest if entry else "",
            problems=tuple(self._problems(computed)),
            cached=entry is not None and not keys and not used & self._new_captions,
            read_bytes=prepared.read_bytes,
            written_bytes=sum(new.cached.size_bytes for new in computed.new),
            seconds=computed.seconds + Seconds(store=time.monotonic() - began_s),
        )

    def _decoded(self, record: SampleRecord) -> Prepared:
        try:
            data = self._datasets.image(self._tenant, self._dataset_id, record)
        except (ObjectMissing, ObjectDamaged) as error:
            message = "the store has lost or damaged the uploaded image; upload it again"
            raise BadSample(Problem.ORIGINAL_LOST, message) from error
        decoded = decode(data, max_pixels=self._max_image_pixels, background=self._options.background_rgb)
        views = tuple(
            WantedView(
                bucket=view.bucket,
                variants=tuple(self._variant(cut) for cut in variants_of(decoded, view, self._options)),
            )
            for view in views_of(decoded, self._options)
        )
        return Prepared(
            record=record,
            picture_digest=str(views[0].variants[0][0].recipe["pixels"]),
            views=views,
            captions=tuple(self._captions(record)),
            warnings=decoded.warnings,
            read_bytes=len(data),
        )

    def _variant(self, variant: Variant) -> tuple[Wanted, Wanted | None]:
        mean_only = self._options.latent_form == "MEAN"
        recipe = {"pixels": pixel_digest(variant.image), "form": self._options.latent_form}
        latents = self._wanted("latents", recipe, partial(_latents, variant=variant, mean_only=mean_only))
        if variant.mask_1hw is None:
            return latents, None
        mask_1hw = torch.from_numpy(variant.mask_1hw)
        weights = hashlib.sha256(variant.mask_1hw.tobytes()).hexdigest()
        mask_recipe = {"shape": list(mask_1hw.shape), "weights": weights}
        return latents, self._wanted("masks", mask_recipe, lambda _: {cache.LOSS_MASK: mask_1hw})

    def _captions(self, record: SampleRecord) -> Iterator[tuple[str, Wanted]]:
        for caption in record.captions:
            text = with_trigger(caption, self._options.trigger_word)
            yield text, self._wanted("captions", caption_recipe(text, self._models.models), embedding(text))

    def _wanted(self, kind: str, recipe: Recipe, compute: Callable[[EncoderModels], Mapping[str, Tensor]]) -> Wanted:
        name = _name(kind, recipe)
        found = self._known.get(name) or self._tensors.find(kind, recipe)
        if found:
            self._known[name] = found
        return Wanted(kind=kind, recipe=recipe, compute=compute, found=found)

    def _sound(self, cached: CachedObject) -> bool:
        name = _name(cached.key, {})
        if name not in self._known and self._tensors.sound(cached):
            self._known[name] = cached
        return name in self._known

    def _sample(self, prepared: Prepared, new: list[NewObject]) -> CachedSample:
        return CachedSample(
            **_of_the_dataset(prepared.record),
            views=tuple(
                CachedView(
                    height_px=view.bucket.height_px,
                    width_px=view.bucket.width_px,
                    variants=tuple(
                        CachedVariant(latents=self._have(latents, new), mask=mask and self._have(mask, new))
                        for latents, mask in view.variants
                    ),
                )
                for view in prepared.views
            ),
            captions=tuple(
                CachedCaption(caption=text, embedding=self._have(wanted, new)) for text, wanted in prepared.captions
            ),
        )

    def _have(self, wanted: Wanted, new: list[NewObject]) -> CachedObject:
        """The object, computed unless it was found when the sample was prepared, or computed since for another."""
        name = _name(wanted.kind, wanted.recipe)
        if known := wanted.found or self._known.get(name):
            return known
        packed = self._tensors.pack(wanted.kind, wanted.recipe, finite(self._models.run(wanted.compute), wanted.kind))
        new.append(packed)
        self._known[name] = packed.cached
        return packed.cached

    def _unread(self, sample: CachedSample) -> Iterator[tuple[Problem, str]]:
        for caption in sample.captions[:CAPTIONS_WARNED_OF]:
            shown = shortened(caption.caption, CAPTION_SHOWN)
            # Of `[trigger]` as it stands, the warning below says enough.
            for problem, what in unread(self._models.models, caption.caption.replace(TRIGGER_PLACE, "")):
                yield problem, f"caption {quoted(shown)}: {what}; {_REMEDIES[problem]}"
            if TRIGGER_PLACE in caption.caption:
                message = (
                    f"caption {quoted(shown)} holds {TRIGGER_PLACE} as it stands; give a trigger word to replace it"
                )
                yield Problem.TRIGGER_MISSING, message

    def _problems(self, computed: Computed) -> Iterator[SampleProblem]:
        make = partial(SampleProblem, sample_name=computed.prepared.record.sample_name)
        if computed.bad:
            yield make(problem=computed.bad.problem, message=computed.bad.message)
        for problem, message in computed.entry.warnings if computed.entry else ():
            yield make(problem=problem, message=message)
        if lost := computed.prepared.lost:
            message = (
                f"cached tensors were damaged or missing and have been encoded again ({len(lost)}, first {lost[0]}); "
                "if that happens often, check the store"
            )
            yield make(problem=Problem.CACHE_REPAIRED, message=message)

    def _recipe(self, record: SampleRecord) -> Recipe:
        """Everything that decides what a sample becomes, but for its name and its repeats."""
        how = self._options.model_dump(mode="json", exclude={"skip_bad_samples", "max_bad_share"})
        image = {"image": record.content_digest, "max_pixels": self._max_image_pixels, "decoders": DECODERS}
        return {"captions": record.captions, "t5_tokens": self._models.models.t5_tokens, **image, **how}


def _of_the_dataset(record: SampleRecord) -> dict[str, Any]:
    """What a dataset says of a sample, whatever its image and captions have become in the cache."""
    return {
        "sample_name": record.sample_name,
        "repeats": record.repeats,
        "content_digest": record.content_digest,
    }


def _name(kind: str, recipe: Recipe) -> bytes:
    return hashlib.sha256(f"{kind} {sorted(recipe.items())}".encode()).digest()


def caption_recipe(caption: str, models: EncoderModels) -> Recipe:
    """Everything but the encoder that decides a caption's embedding."""
    return {"caption": caption, "t5_tokens": models.t5_tokens}


def embedding(caption: str) -> Callable[[EncoderModels], Mapping[str, Tensor]]:
    """What computes a caption's embeddings (`t5`, `clip_pooled`)."""

    def compute(models: EncoderModels) -> Mapping[str, Tensor]:
        t5_SD, clip_D = models.encode_caption(caption)
        return {cache.T5_EMBEDDING: t5_SD, cache.CLIP_POOLED: clip_D}

    return compute


def finite(tensors: Mapping[str, Tensor], kind: str) -> Mapping[str, Tensor]:
    """The tensors; raises `BadSample` when a number of them is not finite: nothing of that kind is ever cached."""
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        cause = "its image; look at it" if kind == "latents" else "a caption of it; reword or shorten it"
        raise BadSample(Problem.NOT_FINITE, f"the encoder gave a number that is not finite for {cause}")
    return tensors


def _latents(models: EncoderModels, variant: Variant, *, mean_only: bool) -> Mapping[str, Tensor]:
    mean_Chw, logvar_Chw = models.encode_image(pixels(variant.image))
    return (
        {cache.LATENT_MEAN: mean_Chw} if mean_only else {cache.LATENT_MEAN: mean_Chw, cache.LATENT_LOGVAR: logvar_Chw}
    )
