"""What training will see of an image: which sizes, which crops, mirrored or not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from services.encoder.images.buckets import Bucket, Crop, choose_bucket, crop_to, loss_mask, random_crops
from services.encoder.images.decoding import Decoded, pixel_digest
from services.encoder.problems import BadSample
from services.encoder.records import EncodingOptions


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One crop as the VAE will see it, RGB, and the weights of its loss if they are wanted: (1, height/8, width/8)."""

    crop: Crop
    image: Image.Image
    mask_1hw: NDArray[np.float32] | None


@dataclass(frozen=True, kw_only=True)
class View:
    """An image at one resolution."""

    bucket: Bucket
    crops: tuple[Crop, ...]


def views_of(decoded: Decoded, options: EncodingOptions) -> tuple[View, ...]:
    """The sizes and crops of an image; resolutions that come to the same size give one. Raises `BadSample`."""
    width_px, height_px = decoded.image.size
    crops: tuple[Crop, ...] = (Crop(),)
    if options.random_crops:
        crops = random_crops(options.random_crops, seed=options.crop_seed, digest=pixel_digest(decoded.image))
    if options.flip:
        crops = tuple(Crop(x=crop.x, y=crop.y, mirrored=flip) for crop in crops for flip in (False, True))
    buckets: dict[Bucket, None] = {}
    refusal: BadSample | None = None
    for resolution_px in options.resolutions_px:
        try:
            bucket = choose_bucket(
                width_px,
                height_px,
                resolution_px=resolution_px,
                step_px=options.bucket_step_px,
                upscale=options.upscale,
            )
            buckets[bucket] = None
        except BadSample as error:
            refusal = error
    if refusal and not buckets:
        raise refusal
    return tuple(View(bucket=bucket, crops=crops) for bucket in buckets)


def variants_of(decoded: Decoded, view: View, options: EncodingOptions) -> Iterator[Variant]:
    """The crops of a view, cut."""
    alpha = decoded.alpha if options.alpha_policy == "MASK" else None
    for crop in view.crops:
        yield Variant(
            crop=crop,
            image=crop_to(decoded.image, view.bucket, crop),
            mask_1hw=None if alpha is None else loss_mask(alpha, view.bucket, crop),
        )
