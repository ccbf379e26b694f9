"""From the bytes of a file to one picture: every format, upright, sRGB, composited; what is none is refused by kind."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageCms

from services.encoder.images.decoding import IMAGE_FORMATS, Decoded, decode, pixel_digest
from services.encoder.problems import BadSample, Problem

LIMIT_PX = 10_000
EXIF_ORIENTATION = 0x0112
PILLOW_NAMES = {"HEIC": "HEIF"}
LOSSY = {"JPEG", "WEBP", "AVIF", "HEIC", "MPO"}


def file_of(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The image as the bytes of a file."""
    buffer = io.BytesIO()
    image.copy().save(buffer, PILLOW_NAMES.get(kind, kind), **options)
    return buffer.getvalue()


def read(data: bytes) -> Decoded:
    """Decode within this file's limit."""
    return decode(data, max_pixels=LIMIT_PX)


def picture(mode: str = "RGB") -> Image.Image:
    """40 x 24 px: a red left and a blue right half."""
    image = Image.new("RGB", (40, 24), (250, 10, 10))
    image.paste((10, 10, 250), (20, 0, 40, 24))
    return image.convert(mode)


def noise(seed: int = 0, side: int = 64) -> Image.Image:
    """A picture of which every pixel matters."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8))


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, color: int, rows: bytes, *chunks: bytes) -> bytes:
    """A PNG file of any kind of pixel, with chunks before its pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    body = b"".join(chunks) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + body


def tiff(pixels: bytes, **changed: int) -> bytes:
    """A grey TIFF file of 16 x 16 px, 16 bits each; tags are changed as t258=12."""
    tags = {256: 16, 257: 16, 258: 16, 259: 1, 262: 1, 273: 8, 277: 1, 278: 16, 279: len(pixels)}
    tags |= {int(name[1:]): value for name, value in changed.items()}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    start = struct.pack("<2sHI", b"II", 42, 8 + len(pixels))
    return start + pixels + struct.pack("<H", len(tags)) + entries + bytes(4)


def problem_of(data: bytes) -> BadSample:
    """Why these bytes cannot be used."""
    with pytest.raises(BadSample) as caught:
        read(data)
    return caught.value


@pytest.mark.parametrize("kind", [*IMAGE_FORMATS, "MPO"])
def test_every_format_is_read(kind: str) -> None:
    decoded = read(file_of(picture(), kind))
    assert (decoded.image.mode, decoded.image.size, decoded.alpha, decoded.warnings) == ("RGB", (40, 24), None, ())
    left, right = (np.asarray(decoded.image, dtype=int)[12, column] for column in (5, 35))
    assert np.abs(left - [250, 10, 10]).max() <= (20 if kind in LOSSY else 0)
    assert np.abs(right - [10, 10, 250]).max() <= (20 if kind in LOSSY else 0)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "AVIF", "TIFF", "GIF", "HEIC", "MPO"])
def test_first_picture_of_many_is_taken(kind: str) -> None:
    others = [Image.new("RGB", (40, 24), color) for color in ("lime", "black")]
    image = read(file_of(picture(), kind, save_all=True, append_images=others)).image
    assert np.abs(np.asarray(image, dtype=int)[12, 5] - [250, 10, 10]).max() <= 20


@pytest.mark.parametrize("kind", ["AVIF", "HEIC"])
def test_container_that_avif_and_heic_share_is_told_apart(kind: str) -> None:
    data = bytearray(file_of(picture(), kind))
    data[8:12] = b"mif1"  # which says no more than that there are images inside
    assert read(bytes(data)).image.size == (40, 24)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "LAB", "RGBX"])
def test_every_kind_of_pixel_is_read_with_its_brightness(mode: str) -> None:
    kind = "PNG" if mode in {"1", "L", "P", "LA", "RGBA"} else "TIFF"
    for grey in (0, 255):
        decoded = read(file_of(Image.new("RGB", (16, 16), (grey,) * 3).convert(mode), kind))
        assert decoded.warnings == ()
        assert decoded.image.getpixel((3, 3)) == pytest.approx((grey,) * 3, abs=int(mode == "LAB"))


def test_ink_of_a_photograph_for_print_is_not_inverted() -> None:
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    assert read(file_of(cyan, "JPEG", quality=95)).image.getpixel((3, 3)) == pytest.approx((0, 255, 255), abs=4)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled(kind: str) -> None:
    ramp = Image.fromarray(np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16))
    assert np.array_equal(np.asarray(read(file_of(ramp, kind)).image)[..., 0], np.arange(256).reshape(16, 16))


def test_12_bit_and_inverted_grey_is_read_with_its_brightness() -> None:
    white, black = b"\xff\xff" * 256, bytes(512)
    assert read(tiff(white)).image.getpixel((3, 3)) == (255, 255, 255)
    assert read(tiff(white, t262=0)).image.getpixel((3, 3)) == (0, 0, 0)
    assert read(tiff(black, t262=0)).image.getpixel((3, 3)) == (255, 255, 255)
    assert read(tiff(white[:384], t258=12)).image.getpixel((3, 3)) == (255, 255, 255)


@pytest.mark.parametrize(("color", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_16_bit_color_is_scaled(color: int, channels: int) -> None:
    pixel = b"\x80\x10" * channels
    decoded = decode(png(1, 1, 16, color, b"\0" + pixel), max_pixels=1, background=(128, 128, 128))
    assert decoded.image.getpixel((0, 0)) == (128, 128, 128)
    assert (decoded.alpha and decoded.alpha.getpixel((0, 0))) == (None if channels == 3 else 128)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_of_32_bits_are_refused(mode: str) -> None:
    error = problem_of(file_of(Image.new(mode, (16, 16)), "TIFF"))
    assert error.problem is Problem.NOT_AN_IMAGE
    assert "export 8 or 16" in error.message


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF", "HEIC"])
def test_photograph_is_turned_upright(kind: str, orientation: int) -> None:
    turns = ["FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_90", "TRANSVERSE", "ROTATE_270"]
    upright = picture()
    upright.paste((240, 240, 240), (0, 0, 20, 12))
    stored = upright.transpose(Image.Transpose[turns[orientation - 2]]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    stored.info["exif"] = (
        exif.tobytes()
    )  # from where HEIC's writer takes it into the container; the others want it said
    decoded = read(file_of(stored, kind, **({} if kind == "HEIC" else {"exif": exif}))).image
    assert decoded.size == upright.size
    difference = np.abs(np.asarray(decoded, dtype=int) - np.asarray(upright, dtype=int))
    assert np.median(difference) <= (12 if kind in LOSSY else 0)
    assert difference.mean() < 20


def test_alpha_is_turned_with_its_picture() -> None:
    image = picture("RGBA")
    image.putalpha(Image.linear_gradient("L").resize((40, 24)))
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    alpha = read(file_of(image.transpose(Image.Transpose.ROTATE_90), exif=exif)).alpha
    assert alpha is not None
    assert alpha.tobytes() == image.getchannel("A").tobytes()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # pytest undoes the filter that `decoding` sets
@pytest.mark.parametrize("notes", [b"Exif\0\0garbage garbage", b"II*\0\xff\xff\xff\xff", bytes(40)])
def test_broken_notes_do_not_make_a_broken_picture(notes: bytes) -> None:
    assert read(file_of(picture(), "PNG", exif=notes)).image.tobytes() == picture().tobytes()


@pytest.mark.parametrize(("alpha", "share"), [(0, 0.0), (255, 1.0), (128, 128 / 255), (1, 1 / 255)])
def test_transparency_is_composited_on_the_background(alpha: int, share: float) -> None:
    data = file_of(Image.new("RGBA", (16, 16), (200, 0, 7, alpha)))
    decoded = decode(data, max_pixels=LIMIT_PX, background=(10, 99, 30))
    expected = [round(share * one + (1 - share) * other) for one, other in zip((200, 0, 7), (10, 99, 30), strict=True)]
    assert decoded.image.getpixel((3, 3)) == tuple(expected)
    assert (decoded.alpha and decoded.alpha.getpixel((3, 3))) == (None if alpha == 255 else alpha)


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_transparent_color_of_a_palette_shows_the_background(kind: str) -> None:
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, 200, 0, 0])
    image.putpixel((0, 0), 0)
    decoded = read(file_of(image, kind, transparency=1))
    assert [decoded.image.getpixel(at) for at in ((0, 0), (3, 3))] == [(0, 0, 0), (255, 255, 255)]


@pytest.mark.parametrize(
    ("depth", "color", "rows", "key"),
    [
        (1, 0, b"\0\x40", b"\0\1"),
        (2, 0, b"\0\x20", b"\0\2"),
        (4, 0, b"\0\x05", b"\0\5"),
        (8, 0, b"\0\1\2", b"\0\2"),
        (16, 0, b"\0\x80\x10\x80\x11", b"\x80\x11"),
        (8, 2, b"\0\1\1\1\2\2\2", b"\0\2" * 3),
        (16, 2, b"\0" + b"\x70\x10" * 3 + b"\x80\x11" * 3, b"\x80\x11" * 3),
    ],
)
def test_transparent_color_is_found_at_every_depth(depth: int, color: int, rows: bytes, key: bytes) -> None:
    alpha = read(png(2, 1, depth, color, rows, png_chunk(b"tRNS", key))).alpha
    assert alpha is not None
    assert alpha.tobytes() == b"\xff\x00"


def icc(space: bytes, tags: dict[bytes, bytes], pcs: bytes = b"XYZ ") -> bytes:
    """A colour profile of a screen or printer, of these tags."""
    tags = {b"wtpt": b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)} | tags
    table, body = struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    kind = b"prtr" if space == b"CMYK" else b"mntr"
    head = struct.pack(">4x4sI4s4s4s12x4s", b"lcms", 0x02400000, kind, space, pcs, b"acsp")
    head = head.ljust(68, b"\0") + struct.pack(">3i", 63190, 65536, 54061)
    whole = head.ljust(128, b"\0") + table + body
    return struct.pack(">I", len(whole)) + whole[4:]


def gamma(value: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(value * 256)) + bytes(2)


def red_ink() -> bytes:
    """A printer whose paper is white and whose every ink is a red, which no formula would guess."""
    ramp = bytes(range(256))
    lab = b"\xff\x80\x80" + b"\x80\xc0\xb0" * 15
    matrix = struct.pack(">9i", *(65536 * (n % 4 == 0) for n in range(9)))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + ramp * 4 + lab + ramp * 3
    return icc(b"CMYK", {b"A2B0": table, b"A2B1": table}, b"Lab ")


def exchanged() -> bytes:
    """A screen whose red is sRGB's blue and the other way round."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return srgb.replace(b"rXYZ", b"tmp!", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"tmp!", b"bXYZ", 1)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG", "AVIF", "HEIC"])
def test_colors_are_converted_from_their_profile(kind: str) -> None:
    decoded = read(file_of(Image.new("RGB", (16, 16), (250, 100, 10)), kind, icc_profile=exchanged()))
    assert decoded.warnings == ()
    assert decoded.image.getpixel((3, 3)) == pytest.approx((10, 100, 250), abs=8 if kind in LOSSY else 2)


def test_conversion_of_colors_leaves_alpha_alone() -> None:
    image = Image.new("RGBA", (16, 16), (250, 100, 10, 0))
    image.paste((250, 100, 10, 77), (0, 0, 8, 16))
    decoded = decode(file_of(image, icc_profile=exchanged()), max_pixels=LIMIT_PX, background=(1, 2, 3))
    assert decoded.alpha is not None
    assert decoded.alpha.tobytes() == image.getchannel("A").tobytes()
    assert decoded.image.getpixel((12, 3)) == (1, 2, 3)  # the background is sRGB already


def test_ink_is_converted_from_its_profile() -> None:
    image = Image.new("CMYK", (16, 16), (0, 0, 0, 0))
    image.paste((255, 0, 0, 0), (0, 0, 8, 16))
    decoded = read(file_of(image, "TIFF", icc_profile=red_ink()))
    assert decoded.warnings == ()
    (red, green, blue), paper = (np.asarray(decoded.image, dtype=int)[3, column] for column in (3, 12))
    assert red > 150
    assert max(green, blue) < 100
    assert paper.min() >= 250


@pytest.mark.parametrize("deep", [False, True])
def test_grey_is_converted_from_its_profile(deep: bool) -> None:
    linear = icc(b"GRAY", {b"kTRC": gamma(1.0)})
    grey = Image.fromarray(np.full((16, 16), 55 * 256 if deep else 55, dtype=np.uint16 if deep else np.uint8))
    decoded = read(file_of(grey, icc_profile=linear))
    assert decoded.warnings == ()
    assert decoded.image.getpixel((3, 3)) == pytest.approx((128, 128, 128), abs=2)  # 21.6 % of the light


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_profile_of_srgb_changes_no_pixel(mode: str) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    at = int.from_bytes(srgb[srgb.index(b"rXYZ") + 4 :][:4], "big") + 8
    rounded = srgb[:at] + (int.from_bytes(srgb[at : at + 4], "big") + 50).to_bytes(4, "big") + srgb[at + 4 :]
    for profile in (srgb, rounded):  # programs differ in the last digits of it
        image = noise().convert(mode)
        decoded = read(file_of(image, icc_profile=profile))
        assert decoded.image.tobytes() == image.convert("RGB").tobytes()
        assert decoded.warnings == ()


@pytest.mark.parametrize(
    "profile", [b"no profile", exchanged()[:200], exchanged().replace(b"RGB ", b"CMYK", 1), red_ink()]
)
def test_profile_of_no_use_is_passed_over_with_a_warning(profile: bytes) -> None:
    decoded = read(file_of(picture(), icc_profile=profile))
    assert decoded.image.tobytes() == picture().tobytes()
    ((problem, sentence),) = decoded.warnings
    assert problem is Problem.COLOR_PROFILE_IGNORED
    assert sentence.endswith("was ignored; export it as sRGB")


def test_profile_that_cannot_be_unpacked_is_passed_over_with_a_warning() -> None:
    decoded = read(png(1, 1, 8, 2, b"\0\1\2\3", png_chunk(b"iCCP", b"name\0\0no zlib")))
    assert [problem for problem, _ in decoded.warnings] == [Problem.COLOR_PROFILE_IGNORED]
    assert decoded.image.getpixel((0, 0)) == (1, 2, 3)


def test_wide_colors_without_a_profile_are_warned_of() -> None:
    data = bytearray(file_of(picture(), "HEIC"))
    at = data.index(b"nclx") + 4
    data[at : at + 2] = struct.pack(">H", 12)  # the primaries of Display P3
    assert [problem for problem, _ in read(bytes(data)).warnings] == [Problem.COLOR_PROFILE_IGNORED]


@pytest.mark.parametrize("data", [b"", b"hello", b"<svg/>", b"%PDF-1.7", b"\0\0\0\x18ftypmp42"])
def test_what_is_no_image_is_refused_with_the_formats_that_are(data: bytes) -> None:
    error = problem_of(data)
    assert error.problem is Problem.NOT_AN_IMAGE
    assert all(name in error.message for name in IMAGE_FORMATS)


def test_format_that_is_not_listed_is_refused() -> None:
    assert problem_of(file_of(picture(), "PPM")).problem is Problem.NOT_AN_IMAGE


@pytest.mark.parametrize("kind", [*IMAGE_FORMATS, "MPO"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9])
def test_half_a_file_is_called_damaged(kind: str, share: float) -> None:
    data = file_of(noise(), kind)
    error = problem_of(data[: max(24, round(len(data) * share))])
    assert error.problem is Problem.TRUNCATED
    assert "export it again" in error.message


@pytest.mark.parametrize("kind", IMAGE_FORMATS)
def test_image_with_too_many_pixels_is_refused(kind: str) -> None:
    assert read(file_of(Image.new("RGB", (100, 100)), kind)).image.size == (100, 100)
    error = problem_of(file_of(Image.new("RGB", (101, 100)), kind))
    assert error.problem is Problem.TOO_LARGE
    assert "101 x 100 px" in error.message
    assert str(LIMIT_PX) in error.message


@pytest.mark.parametrize("side", [101, 12_000, 20_000, 2**16])
def test_size_is_checked_before_pixels_are_decoded(side: int) -> None:
    assert problem_of(png(side, side, 8, 2, bytes(9))).problem is Problem.TOO_LARGE


def test_small_picture_in_an_enormous_tile_is_refused() -> None:
    error = problem_of(tiff(bytes(512), t322=40_000, t323=40_000))
    assert error.problem is Problem.TOO_LARGE
    assert "40000 x 40000" in error.message


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_text_that_unpacks_without_end_is_refused(kind: bytes) -> None:
    bomb = png_chunk(kind, b"name\0\0" + zlib.compress(bytes(50_000_000)))
    assert problem_of(png(1, 1, 8, 2, b"\0\1\2\3", bomb)).problem is Problem.TRUNCATED


def test_nothing_is_printed_about_a_bad_file() -> None:
    corrupt = tiff(bytes(512), t259=5, t258=8)  # LZW that is none: the C library has much to say
    script = (
        "import sys; from services.encoder.images.decoding import decode\n"
        "from services.encoder.problems import BadSample\n"
        f"for data in ({corrupt!r}, {tiff(bytes(512), t277=99)!r}, {tiff(b'')[:-30]!r}):\n"
        "    try: decode(data, max_pixels=10_000)\n"
        "    except BadSample as error: print(error.problem.value)\n"
    )
    run = subprocess.run([sys.executable, "-W", "always", "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["TRUNCATED"] * 3
    assert run.stderr == ""


def test_many_threads_decode_as_one_does() -> None:
    files = [
        file_of(noise(seed), kind, icc_profile=exchanged())
        for seed in range(4)
        for kind in ("PNG", "JPEG", "WEBP", "AVIF", "HEIC", "TIFF")
    ]
    alone = [pixel_digest(read(data).image) for data in files]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda data: pixel_digest(read(data).image), files * 8))
    assert together == alone * 8


def test_digest_is_that_of_the_picture_not_of_the_file() -> None:
    first, *others = (read(file_of(picture(), kind)).image for kind in ("PNG", "BMP", "TIFF", "GIF"))
    assert {pixel_digest(other) for other in others} == {pixel_digest(first)}
    assert pixel_digest(first) != pixel_digest(first.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert pixel_digest(Image.new("RGB", (2, 8))) != pixel_digest(Image.new("RGB", (8, 2)))
    assert pixel_digest(Image.new("L", (2, 2))) != pixel_digest(Image.new("P", (2, 2)))
    assert pixel_digest(Image.new("L", (6, 2))) != pixel_digest(Image.new("RGB", (2, 2)))
