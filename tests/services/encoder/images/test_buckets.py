"""The bucket of a picture, the window that is cut from it, and what the VAE and the loss see of that."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from services.encoder.images.buckets import (
    BUCKET_STEP_PX,
    RESIZE_KERNEL,
    Bucket,
    Crop,
    choose_bucket,
    crop_to,
    loss_mask,
    pixels,
    random_crops,
    share_kept,
)
from services.encoder.problems import BadSample, Problem

SIDES = st.integers(1, 12_000)
RESOLUTIONS = st.integers(16, 2048)
STEPS = st.sampled_from([16, 32, 64])
CROPS = st.builds(Crop, x=st.floats(0, 1), y=st.floats(0, 1), mirrored=st.booleans())
WIDE = Bucket(height_px=32, width_px=64)


def noise(width: int, height: int, channels: int = 3) -> Image.Image:
    shape = (height, width, channels)[: 3 if channels > 1 else 2]
    return Image.fromarray(np.random.default_rng(width).integers(0, 255, shape, dtype=np.uint8))


def bucket_of(width: int, height: int, resolution: int, step: int, *, upscale: bool = False) -> Bucket:
    """The bucket, where there is one."""
    try:
        return choose_bucket(width, height, resolution_px=resolution, step_px=step, upscale=upscale)
    except BadSample:
        assume(False)
        raise


@settings(deadline=None)  # the machine may be busy
@given(SIDES, SIDES, RESOLUTIONS, STEPS, st.booleans())
def test_bucket_is_on_the_grid_and_within_its_area(
    width: int, height: int, resolution: int, step: int, upscale: bool
) -> None:
    bucket = bucket_of(width, height, resolution, step, upscale=upscale)
    assert bucket.width_px % step == bucket.height_px % step == 0
    assert 0 < bucket.width_px * bucket.height_px <= resolution**2


@settings(deadline=None)  # the machine may be busy
@given(SIDES, SIDES, RESOLUTIONS, STEPS)
def test_picture_is_never_scaled_up_unasked(width: int, height: int, resolution: int, step: int) -> None:
    bucket = bucket_of(width, height, resolution, step)
    assert bucket.width_px <= width
    assert bucket.height_px <= height


@settings(deadline=None)  # the machine may be busy
@given(SIDES, SIDES, RESOLUTIONS, STEPS, st.booleans())
def test_sides_are_within_a_step_of_the_scaled_picture(
    width: int, height: int, resolution: int, step: int, upscale: bool
) -> None:
    bucket = bucket_of(width, height, resolution, step, upscale=upscale)
    scale = resolution / (width * height) ** 0.5
    scale = scale if upscale else min(1, scale)
    assert abs(bucket.width_px - width * scale) <= step + 0.01
    assert abs(bucket.height_px - height * scale) <= step + 0.01


@settings(deadline=None)  # the machine may be busy
@given(SIDES, SIDES, RESOLUTIONS, STEPS, st.booleans())
def test_no_more_is_cut_off_than_by_rounding_both_sides_down(
    width: int, height: int, resolution: int, step: int, upscale: bool
) -> None:
    bucket = bucket_of(width, height, resolution, step, upscale=upscale)
    scale = resolution / (width * height) ** 0.5
    scale = scale if upscale else min(1, scale)
    below = [int(side * scale / step) * step for side in (width, height)]
    assume(min(below) > 0)
    kept = share_kept(width, height, bucket.width_px, bucket.height_px)
    assert kept >= share_kept(width, height, *below)
    assert kept >= 1 - step / (min(width, height) * scale)


@settings(deadline=None)  # the machine may be busy
@given(st.integers(256, 12_000), st.floats(0.25, 4), st.integers(512, 2048))
def test_ordinary_photograph_loses_less_than_7_percent(width: int, aspect: float, resolution: int) -> None:
    height = max(1, round(width * aspect))
    assume(height >= 256)
    bucket = choose_bucket(width, height, resolution_px=resolution)
    assert share_kept(width, height, bucket.width_px, bucket.height_px) > 0.93


@settings(deadline=None)  # the machine may be busy
@given(SIDES, SIDES, st.integers(16, 1024), STEPS)
def test_more_resolution_never_makes_a_smaller_side(width: int, height: int, resolution: int, step: int) -> None:
    bucket, larger = (bucket_of(width, height, factor * resolution, step) for factor in (1, 2))
    assert larger.width_px >= bucket.width_px
    assert larger.height_px >= bucket.height_px


@settings(deadline=None)  # the machine may be busy
@given(SIDES, SIDES, RESOLUTIONS, STEPS)
def test_turned_picture_has_the_turned_bucket(width: int, height: int, resolution: int, step: int) -> None:
    bucket, turned = bucket_of(width, height, resolution, step), bucket_of(height, width, resolution, step)
    assert (turned.width_px, turned.height_px) == (bucket.height_px, bucket.width_px)


@settings(deadline=None)  # the machine may be busy
@given(SIDES, st.integers(32, 2048), STEPS, st.booleans())
def test_square_stays_square(side: int, resolution: int, step: int, upscale: bool) -> None:
    bucket = bucket_of(side, side, resolution, step, upscale=upscale)
    assert bucket.width_px == bucket.height_px


@settings(deadline=None)  # the machine may be busy
@given(SIDES, SIDES, st.integers(64, 2048))
def test_upscaled_picture_reaches_the_resolution(width: int, height: int, resolution: int) -> None:
    assume(1 / 8 <= width / height <= 8)
    bucket = bucket_of(width, height, resolution, BUCKET_STEP_PX, upscale=True)
    missing = 1 - bucket.width_px * bucket.height_px / resolution**2
    assert missing <= BUCKET_STEP_PX / resolution * (width + height) / (width * height) ** 0.5


@pytest.mark.parametrize(
    ("size", "resolution", "step", "expected"),
    [
        ((512, 512), 512, 16, (512, 512)),
        ((1024, 1024), 512, 16, (512, 512)),
        ((2048, 512), 512, 16, (1024, 256)),
        ((1000, 999), 512, 64, (512, 512)),  # rounding down would make 512 x 448
        ((999, 1000), 512, 64, (512, 512)),
        ((1000, 999), 1024, 64, (960, 960)),  # 1024 would be larger than the picture
        ((1333, 750), 1024, 64, (1280, 704)),
        ((1920, 1080), 1024, 64, (1344, 768)),
        ((1920, 1080), 1024, 16, (1360, 768)),
    ],
)
def test_buckets_of_well_known_sizes(
    size: tuple[int, int], resolution: int, step: int, expected: tuple[int, int]
) -> None:
    bucket = choose_bucket(*size, resolution_px=resolution, step_px=step)
    assert (bucket.width_px, bucket.height_px) == expected


@pytest.mark.parametrize(("size", "upscaling_helps"), [((15, 15), 1), ((15, 1000), 1), ((1, 1), 1), ((100_000, 20), 0)])
def test_image_that_leaves_no_side_is_too_small(size: tuple[int, int], upscaling_helps: int) -> None:
    with pytest.raises(BadSample) as caught:
        choose_bucket(*size, resolution_px=512)
    assert caught.value.problem is Problem.TOO_SMALL
    assert f"{size[0]} x {size[1]} px" in caught.value.message
    assert ("upscaling" in caught.value.message) == upscaling_helps


def test_small_image_is_scaled_up_when_asked() -> None:
    assert choose_bucket(15, 15, resolution_px=512, upscale=True) == Bucket(height_px=512, width_px=512)
    with pytest.raises(BadSample) as caught:
        choose_bucket(1, 100_000, resolution_px=512, upscale=True)
    assert "upscaling" not in caught.value.message


@pytest.mark.parametrize("size", [(64, 32), (200, 100), (201, 77), (70, 300), (20, 10)])
def test_crop_in_the_centre_is_that_of_pillow(size: tuple[int, int]) -> None:
    theirs = ImageOps.fit(noise(*size), (64, 32), RESIZE_KERNEL)
    assert crop_to(noise(*size), WIDE).tobytes() == theirs.tobytes()


def test_image_of_its_buckets_size_is_not_touched() -> None:
    assert crop_to(noise(64, 32), WIDE, Crop(x=0.1, y=0.9)).tobytes() == noise(64, 32).tobytes()


@settings(deadline=None)  # the machine may be busy
@given(CROPS)
def test_mirrored_crop_is_the_mirror_of_the_crop(crop: Crop) -> None:
    image = noise(100, 90)
    plain, mirrored = (crop_to(image, WIDE, Crop(x=crop.x, y=crop.y, mirrored=mirrored)) for mirrored in (False, True))
    assert ImageOps.mirror(plain).tobytes() == mirrored.tobytes()


@pytest.mark.parametrize(("position", "first_px"), [(0.0, 0), (0.5, 32), (1.0, 64), (0.25, 16)])
def test_window_is_where_it_is_said_to_be(position: float, first_px: int) -> None:
    across, down = noise(128, 32), noise(64, 96)
    window = crop_to(across, WIDE, Crop(x=position, y=0.3))
    assert window.tobytes() == across.crop((first_px, 0, first_px + 64, 32)).tobytes()
    window = crop_to(down, WIDE, Crop(x=0.3, y=position))
    assert window.tobytes() == down.crop((0, first_px, 64, first_px + 32)).tobytes()


def test_pixels_are_those_of_diffusers_to_the_bit() -> None:
    image = Image.fromarray(np.arange(768, dtype=np.uint16).astype(np.uint8).reshape(16, 16, 3))
    theirs_BCHW = VaeImageProcessor(vae_scale_factor=16).preprocess(image)
    assert torch.equal(torch.from_numpy(pixels(image))[None], theirs_BCHW)


def test_pixels_run_from_minus_one_to_one_with_channels_first() -> None:
    pixels_CHW = pixels(Image.new("RGB", (32, 16), (0, 255, 51)))
    assert pixels_CHW.shape == (3, 16, 32)
    assert pixels_CHW.dtype == np.float32
    assert pixels_CHW[:, 0, 0].tolist() == pytest.approx([-1, 1, -0.6])


@settings(deadline=None)  # the machine may be busy
@given(CROPS)
def test_loss_mask_covers_the_window_of_the_crop(crop: Crop) -> None:
    alpha = Image.fromarray(np.repeat(np.repeat(np.random.default_rng(0).integers(0, 2, (12, 20)), 16, 0), 16, 1) != 0)
    mask_hw = loss_mask(alpha.convert("L"), WIDE, crop)[0]
    window_HW = np.asarray(crop_to(alpha.convert("L"), WIDE, crop), dtype=float) / 255
    averaged_hw = window_HW.reshape(4, 8, 8, 8).mean(axis=(1, 3))
    assert np.abs(mask_hw - averaged_hw).max() < 0.12  # LANCZOS rings where alpha has edges; the mask does not


@pytest.mark.parametrize(("alpha", "expected"), [(0, 0), (255, 1), (51, 0.2)])
def test_loss_mask_of_even_alpha_is_exact(alpha: int, expected: float) -> None:
    mask_1hw = loss_mask(Image.new("L", (333, 217), alpha), WIDE, Crop(x=0.2, mirrored=True))
    assert mask_1hw.shape == (1, 4, 8)
    assert mask_1hw.dtype == np.float32
    assert np.unique(mask_1hw).tolist() == [np.float32(expected)]


def test_loss_mask_is_mirrored_with_its_crop() -> None:
    alpha = Image.new("L", (64, 32), 0)
    alpha.paste(255, (0, 0, 12, 32))
    assert loss_mask(alpha, WIDE)[0, 0].tolist() == pytest.approx([1, 0.5, 0, 0, 0, 0, 0, 0], abs=0.01)
    assert loss_mask(alpha, WIDE, Crop(mirrored=True))[0, 0].tolist() == loss_mask(alpha, WIDE)[0, 0, ::-1].tolist()


def test_random_crops_are_a_function_of_seed_picture_and_number() -> None:
    crops = random_crops(5, seed=1, digest="ab")
    assert crops == random_crops(5, seed=1, digest="ab")
    assert crops[:2] == random_crops(2, seed=1, digest="ab")
    others = random_crops(5, seed=2, digest="ab") + random_crops(5, seed=1, digest="ac")
    assert len({crop.x for crop in crops + others}) == 15
    assert crops[0].x == 0.6958704999584278  # on every machine


def test_random_crops_are_anywhere_evenly() -> None:
    crops = random_crops(20_000, seed=0, digest="picture")
    for positions in ([crop.x for crop in crops], [crop.y for crop in crops]):
        counts, _ = np.histogram(positions, bins=10, range=(0, 1))
        assert counts == pytest.approx(2000, abs=200)
    assert abs(np.corrcoef([crop.x for crop in crops], [crop.y for crop in crops])[0, 1]) < 0.03
