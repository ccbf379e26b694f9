"""Checks of the encoder's requests, and their translation into the domain. Every error names the field and a remedy."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from fluxsmith.v1 import encoder_pb2 as pb
from fluxsmith_text import fault_of, is_blank, quoted

from services.common.caller import Caller
from services.common.errors import InvalidInput, NotFound
from services.common.fields import check_length, invalid_field, shortened
from services.common.object_store import ObjectStore
from services.encoder.images.buckets import BUCKET_STEP_PX
from services.encoder.records import EncodingOptions, SampleRecord
from services.encoder.settings import EncoderSettings

LONGEST_NAME = 200
MOST_CAPTIONS = 16
MOST_LATENTS = 16
MOST_REPEATS = 1000
MOST_RESOLUTIONS = 4
MOST_RANDOM_CROPS = 8
MOST_VARIANTS = 16  # of one image: they are in memory at once
MIN_RESOLUTION_PX, MAX_RESOLUTION_PX = 64, 2048
MAX_BUCKET_STEP_PX = 256
LONGEST_TRIGGER_WORD = 64
DEFAULT_SHEET, LARGEST_SHEET = 24, 100
_DIGEST = re.compile(r"[0-9a-f]{64}")
_COLOR = re.compile(r"#[0-9a-f]{6}")


def sample_record(header: pb.SampleHeader, limits: EncoderSettings) -> SampleRecord:
    """The sample that a header announces; raises `InvalidInput` that names it."""
    name = header.sample_name
    if not 1 <= len(name) <= LONGEST_NAME or fault_of(name) or is_blank(name):
        fault = fault_of(name) or ("shows nothing" if is_blank(name) else f"has {len(name)} characters")
        remedy = f"Use 1 to {LONGEST_NAME} characters that can be seen, none of them a control character."
        raise invalid_field("sample.sample_name", f"is {shortened(name, 40)}, which {fault}", remedy)
    check_captions(f"captions of sample {quoted(name)}", header.captions, limits, most=MOST_CAPTIONS)
    if not 1 <= header.size_bytes <= limits.max_image_bytes:
        raise invalid_field(
            f"size_bytes of sample {quoted(name)}",
            f"is {header.size_bytes}",
            f"Images may have 1 to {limits.max_image_bytes} bytes.",
            reason="TOO_LARGE" if header.size_bytes else "NOT_AN_IMAGE",
        )
    if not _DIGEST.fullmatch(header.content_digest):
        raise invalid_field(
            f"content_digest of sample {quoted(name)}",
            "is not a sha256 in lower-case hexadecimal",
            "Send the digest of the image file's bytes.",
        )
    repeats = header.repeats if header.HasField("repeats") else 1
    _require_in(f"repeats of sample {quoted(name)}", repeats, 1, MOST_REPEATS)
    return SampleRecord(
        sample_name=name,
        repeats=repeats,
        captions=tuple(header.captions),
        content_digest=header.content_digest,
        size_bytes=header.size_bytes,
    )


def check_captions(
    field: str, captions: Sequence[str], limits: EncoderSettings, *, most: int, empty_allowed: bool = False
) -> None:
    """Raise `InvalidInput` unless there are 1 to `most` captions, none too long and, unless allowed, none empty."""
    if not 1 <= len(captions) <= most:
        reason = "FIELD_INVALID" if captions else "CAPTION_EMPTY"
        raise invalid_field(field, f"are {len(captions)}", f"Give 1 to {most} captions.", reason=reason)
    for caption in captions:
        size = len(caption.encode())
        if size > limits.max_caption_bytes:
            remedy = f"Shorten it to at most {limits.max_caption_bytes} bytes."
            raise invalid_field(field, f"have one of {size} bytes", remedy, reason="CAPTION_TOO_LONG")
        if is_blank(caption) and not empty_allowed:
            described = "is empty" if not caption.strip() else "has invisible characters alone"
            remedy = "Write a caption that says what the image shows."
            raise invalid_field(field, f"have one that {described}", remedy, reason="CAPTION_EMPTY")
        if fault := fault_of(caption, lines=True):
            raise invalid_field(field, f"have one that {fault}", "Take this character out of the caption.")


def encoding_options(options: pb.EncodingOptions, default_resolution_px: int) -> EncodingOptions:
    """Options with their defaults filled in; raises one `InvalidInput` with every field that is wrong."""
    readers: dict[str, Callable[[], object]] = {
        "resolutions_px": lambda: _resolutions(options, default_resolution_px),
        "flip": lambda: options.flip,
        "skip_bad_samples": lambda: _enum(options, "bad_sample_policy", "FAIL") == "SKIP",
        "max_bad_share": lambda: _number(options, "max_bad_share", 0, 1, unset=1),
        "bucket_step_px": lambda: _bucket_step(options),
        "upscale": lambda: options.upscale,
        "random_crops": lambda: _number(options, "random_crops", 1, MOST_RANDOM_CROPS, unset=0),
        "crop_seed": lambda: _number(options, "crop_seed", 0, 2**32 - 1, unset=0),
        "latent_form": lambda: _enum(options, "latent_form", "POSTERIOR"),
        "alpha_policy": lambda: _enum(options, "alpha_policy", "COMPOSITE"),
        "background_color": lambda: _color(options.background_color),
        "trigger_word": lambda: _trigger_word(options.trigger_word),
    }
    chosen = EncodingOptions.model_validate(_read_all(readers))
    if chosen.variant_count > MOST_VARIANTS:
        raise invalid_field(
            "options",
            f"give {chosen.variant_count} variants of each image",
            f"Choose resolutions, random_crops and flip so that there are {MOST_VARIANTS} at most.",
        )
    return chosen


def _read_all(readers: Mapping[str, Callable[[], object]]) -> dict[str, object]:
    """What each reader gives; what any of them raises is raised as one."""
    fields: dict[str, object] = {}
    errors: list[InvalidInput] = []
    for name, read in readers.items():
        try:
            fields[name] = read()
        except InvalidInput as error:
            errors.append(error)
    if errors:
        raise InvalidInput(
            "; ".join(error.message for error in errors),
            reason=errors[0].reason,
            remedy=" ".join(error.remedy for error in errors),
            violations=tuple(violation for error in errors for violation in error.violations),
        )
    return fields


def _trigger_word(word: str) -> str:
    check_length("options.trigger_word", word, LONGEST_TRIGGER_WORD)
    if word != word.strip():
        raise invalid_field("options.trigger_word", "begins or ends with a space", "Leave the space out.")
    return word


def _number(options: pb.EncodingOptions, field: str, least: int, most: int, *, unset: float) -> float:
    if not options.HasField(field):  # type: ignore[arg-type]
        return unset
    value: float = getattr(options, field)
    _require_in(f"options.{field}", value, least, most)
    return value


def _resolutions(options: pb.EncodingOptions, default_resolution_px: int) -> tuple[int, ...]:
    several = tuple(dict.fromkeys(options.resolutions_px))
    if several and options.HasField("resolution_px"):
        raise invalid_field("options.resolutions_px", "comes with resolution_px", "Set one of them.")
    if len(several) > MOST_RESOLUTIONS:
        raise invalid_field("options.resolutions_px", f"has {len(several)} entries", f"Use at most {MOST_RESOLUTIONS}.")
    single = options.resolution_px if options.HasField("resolution_px") else default_resolution_px
    for resolution_px in several or (single,):
        field = "options.resolutions_px" if several else "options.resolution_px"
        if not MIN_RESOLUTION_PX <= resolution_px <= MAX_RESOLUTION_PX or resolution_px % BUCKET_STEP_PX:
            remedy = f"Use a multiple of {BUCKET_STEP_PX} from {MIN_RESOLUTION_PX} to {MAX_RESOLUTION_PX}."
            raise invalid_field(field, f"is {resolution_px}", remedy)
    return several or (single,)


def _bucket_step(options: pb.EncodingOptions) -> int:
    step_px = options.bucket_step_px if options.HasField("bucket_step_px") else BUCKET_STEP_PX
    if not BUCKET_STEP_PX <= step_px <= MAX_BUCKET_STEP_PX or step_px % BUCKET_STEP_PX:
        remedy = f"Use a multiple of {BUCKET_STEP_PX} up to {MAX_BUCKET_STEP_PX}."
        raise invalid_field("options.bucket_step_px", f"is {step_px}", remedy)
    return step_px


def _enum(options: pb.EncodingOptions, field: str, default: str) -> str:
    """The name of an enum field's value without its prefix, the default for an unset one."""
    kinds = options.DESCRIPTOR.fields_by_name[field].enum_type
    values = kinds.values if kinds else []
    number = getattr(options, field)
    prefix = values[0].name.removesuffix("UNSPECIFIED")
    names = {value.number: value.name.removeprefix(prefix) for value in values}
    if number not in names:
        choices = ", ".join(name for value, name in names.items() if value)
        raise invalid_field(f"options.{field}", f"is {number}", f"Use one of {choices}, or leave it unset.")
    return names[number] if number else default


def _color(text: str) -> str:
    color = text.lower() or "#ffffff"
    if not _COLOR.fullmatch(color):
        raise invalid_field(
            "options.background_color", f"is {quoted(text[:20])}", "Write it as `#rrggbb`, such as #808080."
        )
    return color


def _require_in(field: str, value: float, least: int, most: int) -> None:
    if not least <= value <= most:  # not a number is not in any range
        raise invalid_field(field, f"is {value}", f"Use {least} to {most}.")


def sheet_size(page_size: int) -> int:
    """Samples on a contact sheet, the default filled in; raises `InvalidInput` out of range."""
    if not 0 <= page_size <= LARGEST_SHEET:
        raise invalid_field("page_size", f"is {page_size}", f"Use 1 to {LARGEST_SHEET}, or leave it unset.")
    return page_size or DEFAULT_SHEET


def latents_keys(uris: Sequence[str], caller: Caller, store: ObjectStore) -> list[str]:
    """Keys of latents that the caller's tenant owns; raises `NotFound` for any other address."""
    if not 1 <= len(uris) <= MOST_LATENTS:
        raise invalid_field("latents_uris", f"has {len(uris)} entries", f"Send 1 to {MOST_LATENTS} addresses.")
    keys = [store.key_of(uri) for uri in uris]
    for uri, key in zip(uris, keys, strict=True):
        named = key is not None and key.startswith(f"{caller.tenant}/") and len(key) <= 1024 and not fault_of(key)
        if not named or not store.exists(key or ""):
            raise NotFound(
                f"there are no latents at {uri[:200]!r}",
                reason="LATENTS_NOT_FOUND",
                remedy="Name an object of your tenant in this service's bucket.",
            )
    return [key for key in keys if key is not None]
