"""LoRA files to begin with: where a user puts one of his own, and how a job reads it.

A job may begin with what its tenant uploaded, `{tenant}/adapters/{sha256}.safetensors`, or with what a job of its
tenant published, or wrote with a checkpoint, under `{tenant}/jobs/`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from services.common.errors import InvalidInput, LimitExceeded, NotFound
from services.common.fields import invalid_field
from services.common.object_store import ListedObject, ObjectDamaged, ObjectMissing, ObjectStore
from services.common.safetensors_header import Source, read_header
from services.trainer.adapters.fit import refusal
from services.trainer.adapters.outline import Outline, outline_of

UPLOAD_LIFETIME = timedelta(hours=1)
MOST_BYTES = 5 * 1024**3  # what S3 takes in one PUT; rank 128 on every linear layer of FLUX.1-dev is 2.7 GB in float32
_DIGEST = re.compile(r"[0-9a-f]{64}")
# No segment may begin with a dot: some stores keep keys as paths, where `..` leads to other tenants.
_SEGMENT = r"\w[\w.-]*"
_OF_A_CHECKPOINT = rf"checkpoints/{_SEGMENT}/lora"  # its other parts are none that a job could begin with
_OF_A_JOB = rf"jobs/job-[0-9a-f]{{20}}/(?:{_OF_A_CHECKPOINT}|(?!checkpoints/)(?:{_SEGMENT}/)*{_SEGMENT})"
_OWN_KEY = re.compile(rf"(?:adapters/[0-9a-f]{{64}}|{_OF_A_JOB})\.safetensors", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class AdapterUpload:
    """`url` takes an HTTP PUT of the whole file until `lifetime` has passed; `uri` is its address from then on."""

    url: str
    uri: str
    lifetime: timedelta


def adapter_upload(store: ObjectStore, tenant: str, content_digest: str) -> AdapterUpload:
    """Where to put a LoRA file with this sha256; raises `InvalidInput` for what is none.

    The store takes any bytes there: `outline_of_warm_start` and `read_warm_start` check them.
    """
    if not _DIGEST.fullmatch(content_digest):
        raise invalid_field(
            "content_digest",
            f"is {content_digest[:80]!r}, no sha256 in lower-case hexadecimal",
            "Send the digest of the file's bytes.",
        )
    key = f"{tenant}/adapters/{content_digest}.safetensors"
    return AdapterUpload(url=store.upload_url(key, UPLOAD_LIFETIME), uri=store.uri(key), lifetime=UPLOAD_LIFETIME)


def warm_start_key(store: ObjectStore, tenant: str, uri: str) -> str:
    """The key of a LoRA file that a job of this tenant may begin with, which is there and not too large.

    Raises `InvalidInput` for an address that is not the tenant's own, whatever lies there; `NotFound`; `LimitExceeded`.
    """
    return _found(store, tenant, uri).key


def _found(store: ObjectStore, tenant: str, uri: str) -> ListedObject:
    key = store.key_of(uri) or ""
    if not key.startswith(f"{tenant}/") or not _OWN_KEY.fullmatch(key.removeprefix(f"{tenant}/")):
        raise invalid_field(
            "config.warm_start_uri",
            f"is {uri[:200]!r}, not a LoRA file of your tenant",
            "Use the address of a finished job's LoRA, of a checkpoint's, or of one that you have uploaded.",
            reason="WARM_START_FORBIDDEN",
        )
    found = next((entry for entry in store.listed(key) if entry.key == key), None)
    if not found:
        raise _not_found(uri)
    if found.size_bytes > MOST_BYTES:
        raise LimitExceeded(
            f"the file at {uri[:200]!r} has {found.size_bytes} bytes",
            reason="WARM_START_TOO_LARGE",
            remedy=f"Use a LoRA file of at most {MOST_BYTES} bytes.",
        )
    return found


def outline_of_warm_start(store: ObjectStore, tenant: str, uri: str) -> Outline:
    """What the header of a LoRA file to begin with says; nothing else of the file is read, nor its digest checked.

    Raises as `warm_start_key` does, and `InvalidInput` (WARM_START_UNREADABLE) for what no job can begin with.
    """
    found = _found(store, tenant, uri)
    source = Source(size_bytes=found.size_bytes, read=partial(store.get_range, found.key))
    try:
        return outline_of(read_header(source))
    except ObjectMissing as error:
        raise _not_found(uri) from error
    except ValueError as error:
        raise unreadable(error) from None


def unreadable(error: Exception) -> InvalidInput:
    """The refusal of a file that cannot be read, with the remedy that the error knows."""
    return refusal(
        f"names a file that no job can begin with: {error}",
        reason="WARM_START_UNREADABLE",
        remedy=getattr(error, "remedy", "")
        or "Give a LoRA, DoRA, LoKr or LoHa of FLUX.1's transformer in a form that docs/adapters.md lists.",
    )


def read_warm_start(store: ObjectStore, tenant: str, uri: str) -> bytes:
    """The bytes of a LoRA file to begin with, checked against the digest in its name or noted when it was published.

    Raises as `warm_start_key` does, and `InvalidInput` for bytes that are not those announced.
    """
    key = warm_start_key(store, tenant, uri)
    try:
        if key.startswith(f"{tenant}/adapters/"):  # put there without a digest beside it
            return store.get(key, digest=key.rpartition("/")[2].removesuffix(".safetensors"))
        return store.get_verified(key)
    except ObjectMissing as error:
        raise _not_found(uri) from error
    except ObjectDamaged as error:
        raise InvalidInput(
            f"the file at {uri[:200]!r} is not the one that was announced: its digest is another",
            reason="WARM_START_DAMAGED",
            remedy="Upload it again, with the digest of its bytes.",
        ) from error


def _not_found(uri: str) -> NotFound:
    return NotFound(
        f"there is no LoRA file at {uri[:200]!r}",
        reason="WARM_START_NOT_FOUND",
        remedy="Upload the file first, or use the address of a finished job's LoRA.",
    )
