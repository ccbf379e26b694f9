"""From the bytes of a file to pixels: every format, upright, on white; and what is no image is refused by kind."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from services.encoder.images import (
    BUCKET_STEP_PX,
    IMAGE_FORMATS,
    BadSample,
    Bucket,
    Problem,
    choose_bucket,
    crop_to,
    decode,
    pixel_digest,
)

LIMIT_PX = 10_000
EXIF_ORIENTATION = 0x0112


def file_of(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The image as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(mode: str = "RGB") -> Image.Image:
    """40 x 24 px: a red left and a blue right half."""
    image = Image.new("RGB", (40, 24), (250, 10, 10))
    image.paste((10, 10, 250), (20, 0, 40, 24))
    return image.convert(mode)


def png_header(width: int, height: int) -> bytes:
    """A PNG file that claims a size and has next to no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    )


def problem_of(data: bytes) -> BadSample:
    """Why these bytes cannot be used."""
    with pytest.raises(BadSample) as caught:
        decode(data, max_pixels=LIMIT_PX)
    return caught.value


@pytest.mark.parametrize("kind", IMAGE_FORMATS)
def test_every_format_is_read(kind: str) -> None:
    image = decode(file_of(picture(), kind), max_pixels=LIMIT_PX)
    assert (image.mode, image.size) == ("RGB", (40, 24))
    left, right = (np.asarray(image, dtype=int)[12, column] for column in (5, 35))
    assert np.abs(left - [250, 10, 10]).max() <= 20  # JPEG and WEBP lose a little
    assert np.abs(right - [10, 10, 250]).max() <= 20


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK"])
def test_every_kind_of_pixel_is_read_with_its_brightness(mode: str) -> None:
    kind = "TIFF" if mode == "CMYK" else "PNG"
    image = decode(file_of(Image.new("L", (16, 16), 255).convert(mode), kind), max_pixels=LIMIT_PX)
    assert image.getpixel((3, 3)) == (255, 255, 255)
    dark = decode(file_of(Image.new("L", (16, 16), 0).convert(mode), kind), max_pixels=LIMIT_PX)
    assert dark.getpixel((3, 3)) == (0, 0, 0)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_brightness(kind: str) -> None:
    grey = Image.fromarray(np.full((16, 16), 0x8080, dtype=np.uint16))
    assert decode(file_of(grey, kind), max_pixels=LIMIT_PX).getpixel((3, 3)) == pytest.approx((128, 128, 128), abs=1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photograph_is_turned_upright(orientation: int) -> None:
    upright = picture()
    turns = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    stored = upright
    for turn in turns.get(orientation, []):
        stored = stored.transpose(turn)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    decoded = decode(file_of(stored, "PNG", exif=exif), max_pixels=LIMIT_PX)
    assert np.array_equal(np.asarray(decoded), np.asarray(upright))


@pytest.mark.parametrize(("alpha", "expected"), [(255, (200, 0, 0)), (0, (255, 255, 255)), (128, (227, 127, 127))])
def test_transparency_is_composited_on_white(alpha: int, expected: tuple[int, int, int]) -> None:
    image = decode(file_of(Image.new("RGBA", (16, 16), (200, 0, 0, alpha))), max_pixels=LIMIT_PX)
    assert image.getpixel((3, 3)) == pytest.approx(expected, abs=1)


def test_transparent_colour_of_a_palette_is_white() -> None:
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, 200, 0, 0])
    assert decode(file_of(image, transparency=1), max_pixels=LIMIT_PX).getpixel((3, 3)) == (255, 255, 255)


@pytest.mark.parametrize("data", [b"", b"hello", b"<svg/>", b"\x89PNG\r\n\x1a\n", b"%PDF-1.7"])
def test_what_is_no_image_is_refused_with_the_formats_that_are(data: bytes) -> None:
    error = problem_of(data)
    assert error.problem is Problem.NOT_AN_IMAGE
    assert "PNG, JPEG" in error.message


def test_format_that_is_not_listed_is_refused() -> None:
    assert problem_of(file_of(picture(), "PPM")).problem is Problem.NOT_AN_IMAGE


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_truncated_image_is_refused(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    data = file_of(noise, kind)
    assert problem_of(data[: len(data) // 2]).problem in {Problem.TRUNCATED, Problem.NOT_AN_IMAGE}


def test_truncated_png_is_called_that() -> None:
    data = file_of(Image.effect_noise((64, 64), 90))
    assert problem_of(data[: len(data) // 2]).problem is Problem.TRUNCATED


@pytest.mark.parametrize("side", [101, 12_000, 20_000, 2**16])
def test_image_with_too_many_pixels_is_refused_before_it_is_decoded(side: int) -> None:
    error = problem_of(png_header(side, side))
    assert error.problem is Problem.TOO_LARGE
    assert str(side) in error.message
    assert str(LIMIT_PX) in error.message


def test_image_of_exactly_the_limit_is_taken() -> None:
    assert decode(file_of(Image.new("RGB", (100, 100))), max_pixels=LIMIT_PX).size == (100, 100)


def test_digest_is_that_of_the_picture_not_of_the_file() -> None:
    png, bmp = (decode(file_of(picture(), kind), max_pixels=LIMIT_PX) for kind in ("PNG", "BMP"))
    assert pixel_digest(png) == pixel_digest(bmp)
    assert pixel_digest(png) != pixel_digest(png.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert pixel_digest(Image.new("RGB", (2, 8))) != pixel_digest(Image.new("RGB", (8, 2)))


SIZES = [(64, 64), (100, 50), (50, 100), (1000, 1000), (1920, 1080), (333, 777), (16, 16), (17, 31), (4000, 300)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resolution_px", [64, 512, 1024])
def test_bucket_obeys_its_rules(size: tuple[int, int], resolution_px: int) -> None:
    bucket = choose_bucket(*size, resolution_px=resolution_px)
    sides = (bucket.width_px, bucket.height_px)
    assert all(side % BUCKET_STEP_PX == 0 and side >= BUCKET_STEP_PX for side in sides)
    assert sides[0] * sides[1] <= resolution_px**2
    assert all(side <= original for side, original in zip(sides, size, strict=True))  # never scaled up
    scale = min(1, resolution_px / (size[0] * size[1]) ** 0.5)
    lost = [original * scale - side for side, original in zip(sides, size, strict=True)]
    assert all(-1e-4 <= pixels < BUCKET_STEP_PX for pixels in lost)  # the aspect ratio, but for the crop


@pytest.mark.parametrize(
    ("size", "expected"), [((512, 512), (512, 512)), ((1024, 1024), (512, 512)), ((2048, 512), (1024, 256))]
)
def test_size_that_fits_exactly_is_not_rounded_down(size: tuple[int, int], expected: tuple[int, int]) -> None:
    bucket = choose_bucket(*size, resolution_px=512)
    assert (bucket.width_px, bucket.height_px) == expected


@pytest.mark.parametrize("size", [(15, 15), (15, 1000), (1, 1), (100_000, 20)])
def test_image_that_leaves_no_side_is_too_small(size: tuple[int, int]) -> None:
    with pytest.raises(BadSample) as caught:
        choose_bucket(*size, resolution_px=512)
    assert caught.value.problem is Problem.TOO_SMALL


def test_pixels_run_from_minus_one_to_one_with_channels_first() -> None:
    image = Image.new("RGB", (32, 16), (0, 255, 51))
    pixels_CHW = crop_to(image, Bucket(height_px=16, width_px=32))
    assert pixels_CHW.shape == (3, 16, 32)
    assert pixels_CHW.dtype == np.float32
    assert pixels_CHW[:, 0, 0].tolist() == pytest.approx([-1, 1, -0.6])


def test_crop_takes_the_centre() -> None:
    image = Image.new("RGB", (48, 16), "black")
    image.paste("white", (16, 0, 32, 16))
    assert crop_to(image, Bucket(height_px=16, width_px=16)).min() == 1


def test_image_of_its_buckets_size_is_not_touched() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8))
    pixels_CHW = crop_to(noise, Bucket(height_px=32, width_px=48))
    assert np.array_equal(np.rint((pixels_CHW.transpose(1, 2, 0) + 1) * 127.5), np.asarray(noise))
