"""What training will see of an image: sizes, crops, mirrored variants, masks, and captions with their trigger word."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageOps

from services.encoder.images.buckets import Bucket, crop_to
from services.encoder.images.decoding import Decoded
from services.encoder.images.views import View, variants_of, views_of
from services.encoder.problems import BadSample, Problem
from services.encoder.records import EncodingOptions


def options(*resolutions_px: int, **changes: object) -> EncodingOptions:
    """Options with these resolutions."""
    return EncodingOptions(resolutions_px=resolutions_px or (64,)).model_copy(update=changes)


def decoded(width: int = 80, height: int = 64, *, alpha: bool = False) -> Decoded:
    """Noise, with a transparent left half if asked."""
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    mask = np.full((height, width), 255, dtype=np.uint8)
    mask[:, : width // 2] = 0
    return Decoded(image=Image.fromarray(noise), alpha=Image.fromarray(mask) if alpha else None, warnings=())


def views(width: int, height: int, chosen: EncodingOptions, color: str = "red") -> tuple[View, ...]:
    """The views of a picture of one colour."""
    return views_of(Decoded(image=Image.new("RGB", (width, height), color), alpha=None, warnings=()), chosen)


def test_each_resolution_gives_a_view() -> None:
    seen = views(1000, 1000, options(512, 768))
    assert [(view.bucket.height_px, view.bucket.width_px) for view in seen] == [(512, 512), (768, 768)]


def test_resolutions_that_an_image_is_too_small_for_come_out_once() -> None:
    (view,) = views(100, 100, options(512, 768))
    assert view.bucket == Bucket(height_px=96, width_px=96)


def test_image_too_small_for_one_resolution_is_used_at_the_other() -> None:
    (view,) = views(100, 3000, options(64, 1024))
    assert view.bucket.width_px >= 16
    with pytest.raises(BadSample) as caught:
        views(30, 30_000, options(64, 128))
    assert caught.value.problem is Problem.TOO_SMALL


def test_flip_doubles_every_crop_and_centre_is_the_default() -> None:
    assert len(views(80, 64, options())[0].crops) == 1
    (view,) = views(80, 64, options(flip=True, random_crops=3))
    assert [crop.mirrored for crop in view.crops] == [False, True] * 3
    assert len({(crop.x, crop.y) for crop in view.crops}) == 3


def test_random_crops_depend_on_the_picture_and_the_seed_alone() -> None:
    first, again = (views(80, 64, options(random_crops=2)) for _ in range(2))
    assert first == again
    assert first != views(80, 64, options(random_crops=2), "blue")
    assert first != views(80, 64, options(random_crops=2, crop_seed=1))


def test_variants_are_the_crops_cut() -> None:
    picture = decoded()
    (view,) = views_of(picture, options(flip=True))
    straight, mirrored = variants_of(picture, view, options(flip=True))
    assert straight.image.tobytes() == crop_to(picture.image, view.bucket).tobytes()
    assert mirrored.image.tobytes() == ImageOps.mirror(straight.image).tobytes()


def test_transparency_is_a_mask_only_when_asked() -> None:
    picture = decoded(64, 64, alpha=True)
    (view,) = views(64, 64, options(flip=True))
    assert [variant.mask_1hw for variant in variants_of(picture, view, options())] == [None, None]
    straight, mirrored = variants_of(picture, view, options(alpha_policy="MASK"))
    assert straight.mask_1hw is not None
    assert mirrored.mask_1hw is not None
    assert straight.mask_1hw.shape == (1, 8, 8)
    assert straight.mask_1hw[0, 0].tolist() == [0] * 4 + [1] * 4
    assert mirrored.mask_1hw[0, 0].tolist() == [1] * 4 + [0] * 4


def test_opaque_picture_needs_no_mask() -> None:
    (view,) = views(80, 64, options())
    (variant,) = variants_of(decoded(), view, options(alpha_policy="MASK"))
    assert variant.mask_1hw is None
