"""Encode a dataset: every sample through the cache, the models only for what the cache lacks, the manifest last."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from safetensors import SafetensorError
from torch import Tensor

from services.common import cache
from services.common.cache import CachedCaption, CachedObject, CachedSample, DatasetManifest
from services.common.errors import InvalidInput
from services.common.object_store import ObjectStore
from services.encoder import images
from services.encoder.datasets import Datasets, EncodingOptions, EncodingOutcome, SampleProblem, SampleRecord
from services.encoder.images import BadSample, Problem
from services.encoder.models import EncoderModels, ModelThread
from services.encoder.settings import EncoderSettings

LATENT_CHANNELS = 16
LATENT_SIDES = range(2, 257, 2)  # up to 2048 px


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far an encoding has come. `cached` samples needed no model work, `bad` ones cannot be used."""

    total: int = 0
    encoded: int = 0
    cached: int = 0
    bad: tuple[SampleProblem, ...] = ()


class DatasetEncoder:
    """Encodes datasets. `encode_dataset` is the story; the rest is its sentences."""

    def __init__(self, datasets: Datasets, models: ModelThread, settings: EncoderSettings) -> None:
        self._datasets = datasets
        self._models = models
        self._settings = settings

    def encode_dataset(
        self, tenant: str, dataset_id: str, options: EncodingOptions, on_progress: Callable[[Progress], None]
    ) -> EncodingOutcome:
        """Encode all samples and publish the manifest last. Doing it again costs no model work."""
        tensors = TensorCache(self._datasets.store, self._models, tenant)
        records = self._datasets.samples(tenant, dataset_id)
        progress = Progress(total=len(records))
        samples: list[CachedSample] = []
        warnings = SampleWarnings(self._models)
        for record in records:
            try:
                runs_before = tensors.model_runs
                image = images.decode(
                    self._datasets.image(tenant, dataset_id, record), max_pixels=self._settings.max_image_pixels
                )
                samples.append(encode_sample(tensors, record, image, options))
                hit = tensors.model_runs == runs_before
                progress = replace(progress, encoded=progress.encoded + 1, cached=progress.cached + hit)
                warnings.check(record, image)
            except BadSample as error:
                bad = SampleProblem(sample_name=record.sample_name, problem=error.problem, message=error.message)
                progress = replace(progress, bad=(*progress.bad, bad))
            on_progress(progress)
        if not samples or (progress.bad and not options.skip_bad_samples):
            return EncodingOutcome(failure=_why_failed(progress), problems=progress.bad)
        self._publish(tensors, dataset_id, samples, progress)
        return EncodingOutcome(problems=(*progress.bad, *warnings.found))

    def embed_captions(self, tenant: str, captions: list[str]) -> list[CachedCaption]:
        """Embed captions through the cache, in their order."""
        tensors = TensorCache(self._datasets.store, self._models, tenant)
        return [tensors.caption(caption) for caption in captions]

    def decode_to_png(self, key: str) -> CachedObject:
        """Decode the latents under `key`, a safetensors object, into a PNG beside them."""
        latents_Chw = read_latents(self._datasets.store.get(key))
        picture = self._models.run(lambda models: models.decode_latents(latents_Chw))
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        stored = self._datasets.store.put(f"{key}.png", buffer.getvalue(), content_type="image/png")
        return CachedObject(key=stored.key, digest=stored.digest, size_bytes=stored.size_bytes)

    def _publish(self, tensors: TensorCache, dataset_id: str, samples: list[CachedSample], progress: Progress) -> None:
        models = self._models.models
        manifest = DatasetManifest(
            dataset_id=dataset_id,
            encoder_fingerprint=models.fingerprint,
            latent_shift=models.vae.config.shift_factor,
            latent_scale=models.vae.config.scaling_factor,
            empty_caption=tensors.caption(""),
            samples=tuple(samples),
        )
        cache.publish_manifest(self._datasets.store, tensors.tenant, manifest, cached_count=progress.cached)


def encode_sample(
    tensors: TensorCache, record: SampleRecord, image: Image.Image, options: EncodingOptions
) -> CachedSample:
    """Put one sample through the cache: every variant of its image, every caption. Raises `BadSample`."""
    bucket = images.choose_bucket(image.width, image.height, resolution_px=options.resolution_px)
    variants = (image, ImageOps.mirror(image)) if options.flip else (image,)
    return CachedSample(
        sample_name=record.sample_name,
        height_px=bucket.height_px,
        width_px=bucket.width_px,
        latents=tuple(tensors.latents(variant, bucket) for variant in variants),
        captions=tuple(tensors.caption(caption) for caption in record.captions),
    )


def read_latents(data: bytes) -> Tensor:
    """The tensor `latents` (16, h, w) of a safetensors file; raises `InvalidInput` when there is no such thing."""
    try:
        latents_Chw: Tensor = safetensors.torch.load(data)[cache.LATENTS]
    except (SafetensorError, KeyError) as error:
        raise InvalidInput(
            f"the object is no safetensors file with a tensor {cache.LATENTS!r} ({error})",
            reason="LATENTS_INVALID",
            remedy="Write latents of shape (16, height/8, width/8) in model space under that name.",
        ) from error
    channels, *sides = latents_Chw.shape or (0,)
    shaped = channels == LATENT_CHANNELS and len(sides) == 2 and all(side in LATENT_SIDES for side in sides)
    if not shaped or not latents_Chw.is_floating_point() or not torch.isfinite(latents_Chw.float()).all():
        raise InvalidInput(
            f"latents have shape {tuple(latents_Chw.shape)} and type {latents_Chw.dtype}, or a number is not finite",
            reason="LATENTS_INVALID",
            remedy="Write finite floating-point latents of shape (16, height/8, width/8), sides even, from 2 to 256.",
        )
    return latents_Chw


class SampleWarnings:
    """What is worth knowing about usable samples: pictures that come twice, captions whose end is not read."""

    def __init__(self, models: ModelThread) -> None:
        self._models = models
        self._first_with: dict[str, str] = {}
        self.found: list[SampleProblem] = []

    def check(self, record: SampleRecord, image: Image.Image) -> None:
        """Look at one usable sample."""
        first = self._first_with.setdefault(images.pixel_digest(image), record.sample_name)
        if first != record.sample_name:
            self._add(record, Problem.DUPLICATE, f"shows the same picture as {first!r}")
        for caption in record.captions:
            for encoder, count in self._models.run(partial(EncoderModels.tokens_cut_off, caption=caption)).items():
                message = f"caption {caption[:40]!r}: {encoder} does not read its last {count} tokens; shorten it"
                self._add(record, Problem.CAPTION_TRUNCATED, message)

    def _add(self, record: SampleRecord, problem: Problem, message: str) -> None:
        self.found.append(SampleProblem(sample_name=record.sample_name, problem=problem, message=message))


class TensorCache:
    """A tenant's tensors by what they are computed from. A damaged or missing one is computed again, and only it.

    `model_runs` counts what was not in the cache.
    """

    def __init__(self, store: ObjectStore, models: ModelThread, tenant: str) -> None:
        self._store = store
        self._models = models
        self.tenant = tenant
        self.model_runs = 0

    def latents(self, image: Image.Image, bucket: images.Bucket) -> CachedObject:
        """The VAE's posterior (`mean`, `logvar`) of an image cropped to a bucket."""
        recipe: dict[str, object] = {
            "pixels": images.pixel_digest(image),
            "bucket": [bucket.height_px, bucket.width_px],
            "crop": "center",
            "kernel": images.RESIZE_KERNEL.name,
        }

        def compute(models: EncoderModels) -> dict[str, Tensor]:
            mean_Chw, logvar_Chw = models.encode_image(pixels_CHW)
            return {cache.LATENT_MEAN: mean_Chw, cache.LATENT_LOGVAR: logvar_Chw}

        pixels_CHW: NDArray[np.float32] = images.crop_to(image, bucket)
        return self._through("latents", recipe, compute)

    def caption(self, caption: str) -> CachedCaption:
        """The embeddings (`t5`, `clip_pooled`) of a caption."""
        recipe: dict[str, object] = {"caption": caption, "t5_tokens": self._models.models.t5_tokens}

        def compute(models: EncoderModels) -> dict[str, Tensor]:
            t5_SD, clip_D = models.encode_caption(caption)
            return {cache.T5_EMBEDDING: t5_SD, cache.CLIP_POOLED: clip_D}

        return CachedCaption(caption=caption, embedding=self._through("captions", recipe, compute))

    def _through(
        self, kind: str, recipe: dict[str, object], compute: Callable[[EncoderModels], dict[str, Tensor]]
    ) -> CachedObject:
        fingerprint = self._models.models.fingerprint
        text = json.dumps({"kind": kind, "encoder": fingerprint, **recipe}, sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()
        key = f"{cache.cache_prefix(self.tenant, fingerprint)}{kind}/{name}.safetensors"
        stored = self._store.verified(key)
        if stored is None:
            tensors = {name: tensor.contiguous() for name, tensor in self._models.run(compute).items()}
            self.model_runs += 1
            stored = self._store.put(key, safetensors.torch.save(tensors))
        return CachedObject(key=stored.key, digest=stored.digest, size_bytes=stored.size_bytes)


def _why_failed(progress: Progress) -> str:
    if not progress.total:
        return "the dataset has no samples; upload some"
    first = progress.bad[0]
    return (
        f"{len(progress.bad)} of {progress.total} samples cannot be used, first {first.sample_name!r}: {first.message}"
    )
