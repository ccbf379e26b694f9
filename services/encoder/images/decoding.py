"""From the bytes of an image file to one upright sRGB picture. `decode` is the story; bytes are trusted in nothing."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import io
import logging
import struct
import warnings
from dataclasses import dataclass

import numpy as np
import pillow_heif
from PIL import AvifImagePlugin, Image, ImageCms, ImageFile, TiffImagePlugin, UnidentifiedImageError, _imaging
from PIL.ExifTags import Base as Tag

from services.encoder.problems import BadSample, Problem

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "HEIC", "TIFF", "BMP", "GIF")
PILLOW_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "HEIF", "TIFF", "BMP", "GIF")  # JPEG is also MPO, of many phones
WHITE = (255, 255, 255)
LONGEST_REASON = 120  # characters
SMALL_TILE_PX = 1024 * 1024  # a tile of a TIFF may be larger than its picture, but not without end

# A transform that changes no channel by more than this is sRGB under another name, and only rounds.
SAME_COLOR_LEVELS = 2

# What is set here is the process's. It is set on import, once: Pillow asks for formats by name, so HEIC in its registry
# changes nothing for who does not name it; per call, these settings would race between the threads that decode.
pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # who decodes many images does it on a thread each
Image.MAX_IMAGE_PIXELS = None  # `decode` has a limit of its own, and says so in its own words
warnings.filterwarnings("ignore", module=r"PIL\.")  # of a file from outside, the answer is `Decoded` or `BadSample`
logging.getLogger("PIL").setLevel(logging.CRITICAL)
with contextlib.suppress(AttributeError):  # a Pillow without libtiff, or one that hides it: nothing to silence
    for handler in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):  # else they write to the process's stderr
        ctypes.CDLL(_imaging.__file__)[handler](None)

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """A picture as it is meant to be seen, and what was odd about its file."""

    image: Image.Image
    """RGB, upright, sRGB, transparency composited."""

    alpha: Image.Image | None
    """How opaque each pixel was (L, same size), or None when all are."""

    warnings: tuple[tuple[Problem, str], ...]
    """What was passed over, each with a sentence for people."""


def decode(data: bytes, *, max_pixels: int, background: tuple[int, int, int] = WHITE) -> Decoded:
    """Decode the first picture of an image file. Raises `BadSample`, and nothing else whatever the bytes.

    Sizes are checked before pixels are decoded. Safe to call from many threads.
    """
    try:
        with _open(data) as image:
            _check_size(image, max_pixels)
            _scale_transparent_color(image)
            image.load()
            _check_size(image, max_pixels)  # HEIC tells its true size only now
            color, alpha = _color_and_alpha(_as_8_bit(image))
            rgb, problem = _to_srgb(color, image)
            return _finish(rgb, alpha, TURNS.get(_orientation(image)), background, problem)
    except (BadSample, MemoryError):
        raise
    except Exception as error:  # a decoder may raise anything on damaged bytes, and all of it means the same
        reason = _told(error)
        raise BadSample(Problem.TRUNCATED, f"the image is damaged ({reason}); export it again") from error


def pixel_digest(image: Image.Image) -> str:
    """sha256 over mode, size and pixels, in hexadecimal: the same picture in another file has the same digest."""
    header = f"{image.mode} {image.width}x{image.height} ".encode()
    return hashlib.sha256(header + image.tobytes()).hexdigest()


def _open(data: bytes) -> Image.Image:
    """The image with its header read and no pixel decoded."""
    try:
        return Image.open(io.BytesIO(data), formats=PILLOW_FORMATS)
    except UnidentifiedImageError as error:
        known = next((name for name in PILLOW_FORMATS if _begins_like(name, data)), None)
        if known is None:
            raise BadSample(
                Problem.NOT_AN_IMAGE, f"not an image of a known format; use one of {', '.join(IMAGE_FORMATS)}"
            ) from error
        name = "HEIC" if known == "HEIF" else known
        article = "an" if name == "AVIF" else "a"
        raise BadSample(
            Problem.TRUNCATED,
            f"begins like {article} {name} file but cannot be read: damaged or of a rare kind; export it again as PNG",
        ) from error


def _begins_like(name: str, data: bytes) -> bool:
    _, accepts = Image.OPEN[name]
    return accepts is not None and bool(accepts(data[:16]))


def _check_size(image: Image.Image, max_pixels: int) -> None:
    """Refuse what would decode to more than the limit, or has no agreed meaning."""
    width, height = image.size
    if width * height > max_pixels:
        raise BadSample(Problem.TOO_LARGE, f"{width} x {height} px is over the limit of {max_pixels} px; scale it down")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tile = [image.tag_v2.get(tag, 0) for tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH)]
        if tile[0] * tile[1] > max(max_pixels, SMALL_TILE_PX):  # a whole tile is decoded, however small the picture
            raise BadSample(Problem.TOO_LARGE, f"tiles of {tile[0]} x {tile[1]} px are over the limit; export it again")
    if image.mode in {"I", "F"}:
        raise BadSample(Problem.NOT_AN_IMAGE, "its pixels have 32 bits, of which no range is agreed; export 8 or 16")


def _scale_transparent_color(image: Image.Image) -> None:
    """A PNG names its transparent colour in the file's depth; Pillow decodes pixels to 8 bits but leaves the name."""
    key = image.info.get("transparency")
    if image.format != "PNG" or key is None or not isinstance(image, ImageFile.ImageFile) or not image.tile:
        return
    stored_as = image.tile[0].args
    if stored_as in {"L;2", "L;4"}:
        image.info["transparency"] = key * (85 if stored_as == "L;2" else 17)
    elif stored_as == "RGB;16B":
        image.info["transparency"] = tuple(part >> 8 for part in key)


def _as_8_bit(image: Image.Image) -> Image.Image:
    """Greyscale of 12 or 16 bits scaled to 8; Pillow's own conversion would clip all but the darkest to white."""
    if not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image)
    bits, white_is_zero = 16, False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = image.tag_v2.get(Tag.BitsPerSample, (16,))[0]
        white_is_zero = image.tag_v2.get(Tag.PhotometricInterpretation) == 0  # Pillow minds this at 8 bits only
    grey = Image.fromarray((values >> (bits - 8)).astype(np.uint8) ^ np.uint8(255 * white_is_zero))
    if (key := image.info.get("transparency")) is None:
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))))


def _color_and_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Split into L, RGB, CMYK or LAB, and alpha where there is any."""
    grey = image.mode in {"1", "L", "LA", "La"}
    if image.has_transparency_data:
        *channels, alpha = image.convert("LA" if grey else "RGBA").split()
        return (channels[0] if grey else Image.merge("RGB", channels)), alpha
    if image.mode in {"CMYK", "LAB"}:
        return image, None
    mode = "L" if grey else "RGB"
    return image if image.mode == mode else image.convert(mode), None


def _to_srgb(color: Image.Image, file: Image.Image) -> tuple[Image.Image, str]:
    """Convert by the file's colour profile; where it is of no use, the pixels as they are, and why."""
    profile = file.info.get("icc_profile", b"")
    nclx = file.info.get("nclx_profile") or {}
    if profile == b"" or color.mode == "LAB":  # which is defined without a profile
        wide = nclx.get("color_primaries", 1) not in {1, 2} or nclx.get("transfer_characteristics", 1) in {16, 18}
        return _rgb(color), "its colours are wide or HDR without an ICC profile" if wide else ""
    try:
        return _convert(color, profile), ""
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        return _rgb(color), f"its colour profile is of no use ({_told(error)})"


def _told(error: Exception) -> str:
    """What a decoder says of its trouble, short enough for a message."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON].rpartition(' ')[0]} …"


def _rgb(image: Image.Image) -> Image.Image:
    """The image as RGB; itself if it is, since `convert` would copy it."""
    return image if image.mode == "RGB" else image.convert("RGB")


def _convert(color: Image.Image, profile: bytes | None) -> Image.Image:
    """From the profile's colours to sRGB: colours that sRGB has stay exact, and black stays black."""
    if not profile:  # what Pillow makes of a profile that it cannot unpack
        raise ValueError("it is damaged")
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = source.profile.xcolor_space.strip()
    if space == "RGB" and color.mode == "L":  # greyscale saved with the profile of the screen
        color = color.convert("RGB")
    if {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(space) != color.mode:
        raise ValueError(f"it is for {space} and the pixels are {color.mode}")
    transform = ImageCms.buildTransform(
        source,
        ImageCms.createProfile("sRGB"),
        color.mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    return _rgb(color) if _changes_nothing(transform, color.mode) else transform.apply(color)


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether this is sRGB to sRGB, tried on a lattice of colours: then a profile must not touch a pixel."""
    if mode == "CMYK":
        return False
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    lattice = np.stack(np.meshgrid(*[steps] * len(mode), indexing="ij"), axis=-1).reshape(1, -1, len(mode))
    colors = Image.fromarray(lattice if mode == "RGB" else lattice[..., 0])
    before, after = (np.asarray(each, dtype=int) for each in (colors.convert("RGB"), transform.apply(colors)))
    return bool(np.abs(before - after).max() <= SAME_COLOR_LEVELS)


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation; read after `load`, with which TIFF and HEIC turn upright by themselves."""
    try:
        return int(image.getexif().get(Tag.Orientation, 1))
    except (SyntaxError, struct.error, ValueError, TypeError, LookupError, OSError):
        return 1  # as viewers do: broken notes about a picture do not make it a broken picture


def _finish(
    rgb: Image.Image,
    alpha: Image.Image | None,
    turn: Image.Transpose | None,
    background: tuple[int, int, int],
    problem: str,
) -> Decoded:
    """Composite, turn upright, and say what was passed over."""
    if alpha is not None and alpha.getextrema() == (255, 255):
        alpha = None
    if alpha is not None:
        opaque = Image.new("RGB", rgb.size, background)
        opaque.paste(rgb, mask=alpha)
        rgb = opaque
    if turn is not None:
        rgb, alpha = rgb.transpose(turn), alpha and alpha.transpose(turn)
    ignored = ((Problem.COLOR_PROFILE_IGNORED, f"{problem} and was ignored; export it as sRGB"),) if problem else ()
    return Decoded(image=rgb, alpha=alpha, warnings=ignored)
