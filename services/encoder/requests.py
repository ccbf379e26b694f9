"""Checks of the encoder's requests, and their translation into the domain. Every error names the field and a remedy."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fluxsmith.v1 import encoder_pb2 as pb

from services.common.caller import Caller
from services.common.errors import NotFound
from services.common.fields import invalid_field
from services.common.object_store import ObjectStore
from services.encoder.datasets import EncodingOptions, SampleRecord
from services.encoder.images import BUCKET_STEP_PX
from services.encoder.settings import EncoderSettings

MOST_CAPTIONS = 16
MOST_LATENTS = 16
MIN_RESOLUTION_PX, MAX_RESOLUTION_PX = 64, 2048
_DIGEST = re.compile(r"[0-9a-f]{64}")


def sample_record(header: pb.SampleHeader, limits: EncoderSettings) -> SampleRecord:
    """The sample that a header announces; raises `InvalidInput` that names it."""
    name = header.sample_name
    if not 1 <= len(name) <= 200 or not name.isprintable():
        raise invalid_field("sample.sample_name", f"is {name[:40]!r}", "Use 1 to 200 printable characters.")
    check_captions(f"captions of sample {name!r}", header.captions, limits, most=MOST_CAPTIONS)
    if not 1 <= header.size_bytes <= limits.max_image_bytes:
        raise invalid_field(
            f"size_bytes of sample {name!r}",
            f"is {header.size_bytes}",
            f"Images may have 1 to {limits.max_image_bytes} bytes.",
            reason="TOO_LARGE" if header.size_bytes else "NOT_AN_IMAGE",
        )
    if not _DIGEST.fullmatch(header.content_digest):
        raise invalid_field(
            f"content_digest of sample {name!r}",
            "is no sha256 in lower-case hexadecimal",
            "Send the digest of the image file's bytes.",
        )
    return SampleRecord(
        sample_name=name,
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
        raise invalid_field(field, f"has {len(captions)} entries", f"Give 1 to {most} captions.", reason=reason)
    for caption in captions:
        size = len(caption.encode())
        if size > limits.max_caption_bytes:
            remedy = f"Shorten it to at most {limits.max_caption_bytes}."
            raise invalid_field(field, f"has one of {size} bytes", remedy, reason="CAPTION_TOO_LONG")
        if not caption.strip() and not empty_allowed:
            remedy = "Write a caption that says what the image shows."
            raise invalid_field(field, "has an empty one", remedy, reason="CAPTION_EMPTY")


def encoding_options(options: pb.EncodingOptions, default_resolution_px: int) -> EncodingOptions:
    """Options with their defaults filled in."""
    resolution_px = options.resolution_px if options.HasField("resolution_px") else default_resolution_px
    in_range = MIN_RESOLUTION_PX <= resolution_px <= MAX_RESOLUTION_PX
    if not in_range or resolution_px % BUCKET_STEP_PX:
        remedy = f"Use a multiple of {BUCKET_STEP_PX} from {MIN_RESOLUTION_PX} to {MAX_RESOLUTION_PX}."
        raise invalid_field("options.resolution_px", f"is {resolution_px}", remedy)
    if options.bad_sample_policy not in pb.BadSamplePolicy.values():
        remedy = "Use FAIL or SKIP, or leave it unset."
        raise invalid_field("options.bad_sample_policy", f"is {options.bad_sample_policy}", remedy)
    return EncodingOptions(
        resolution_px=resolution_px,
        flip=options.flip,
        skip_bad_samples=options.bad_sample_policy == pb.BAD_SAMPLE_POLICY_SKIP,
    )


def latents_keys(uris: Sequence[str], caller: Caller, store: ObjectStore) -> list[str]:
    """Keys of latents that the caller's tenant owns; raises `NotFound` for any other address."""
    if not 1 <= len(uris) <= MOST_LATENTS:
        raise invalid_field("latents_uris", f"has {len(uris)} entries", f"Send 1 to {MOST_LATENTS} addresses.")
    keys = [store.key_of(uri) for uri in uris]
    for uri, key in zip(uris, keys, strict=True):
        named = key is not None and key.startswith(f"{caller.tenant}/") and key.isprintable() and len(key) <= 1024
        if not named or not store.exists(key or ""):
            raise NotFound(
                f"there are no latents at {uri[:200]!r}",
                reason="LATENTS_NOT_FOUND",
                remedy="Name an object of your tenant in this service's bucket.",
            )
    return [key for key in keys if key is not None]
