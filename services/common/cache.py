"""The contract between encoder and trainer: a manifest that lists every cached tensor of a dataset, and their names.

The encoder writes the tensors first, then the manifest under its own digest, then the pointer that makes the dataset
READY; so whoever finds the pointer finds everything. A job remembers the digest and so trains on what it was created
for, whatever happens to the dataset afterwards.

Keys, each after the tenant:

    cache/{fingerprint}/{kind}/{first 3 of recipe}/{recipe}.{digest}.safetensors    what from, and what it is
    manifests/{digest}.json                              what was encoded, as datasets and jobs point to it
    datasets/{id}/manifest.json, revision.json           pointer to the result, and for which samples it holds
    datasets/{id}/encoding.json                          there while an encoding is wanted; has its identifier
    encodings/{id}/head.json, {offset}.json, end.json    an encoding under way: its samples, in the manifest's order
    holds/{manifest digest or encoding id}/{job}         a job needs it: nothing that it lists is collected
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from services.common.errors import NotReady
from services.common.object_store import ObjectDamaged, ObjectMissing, ObjectStore

Record = TypeVar("Record", bound=BaseModel)
FORMAT_VERSION: Literal[2] = 2

# Names of tensors inside the cached safetensors objects.
LATENT_MEAN = "mean"  # (16, height/8, width/8), VAE output: shift and scale not applied
LATENT_LOGVAR = "logvar"  # the same shape: logarithm of the posterior's variance; absent where only means were kept
LOSS_MASK = "mask"  # (1, height/8, width/8), 0 to 1: how much of a latent's area counts
T5_EMBEDDING = "t5"  # (tokens, width of T5), padded to the full length, unmasked
CLIP_POOLED = "clip_pooled"  # (width of CLIP,)
LATENTS = "latents"  # (16, height/8, width/8), model space: for DecodeLatents


class _Contract(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CachedObject(_Contract):
    """One object: its key, the sha256 of its bytes in hexadecimal, its size."""

    key: str
    digest: str
    size_bytes: int


class CachedCaption(_Contract):
    """A caption and its embeddings (`t5`, `clip_pooled`)."""

    caption: str
    embedding: CachedObject


class CachedVariant(_Contract):
    """One crop of an image, mirrored or not: its latents (`mean`, `logvar`), and its `mask` where there is one."""

    latents: CachedObject
    mask: CachedObject | None = None


class CachedView(_Contract):
    """An image at one resolution: variants of `height_px` x `width_px`, of which a step draws one."""

    height_px: int
    width_px: int
    variants: tuple[CachedVariant, ...]


class CachedSample(_Contract):
    """An image with its captions. An epoch shows every view `repeats` times.

    `content_digest` is the sha256 of the image file, empty where an earlier version has written this.
    """

    sample_name: str
    repeats: int = 1
    content_digest: str = ""
    views: tuple[CachedView, ...]
    captions: tuple[CachedCaption, ...]

    def objects(self) -> Iterator[CachedObject]:
        """Every object it needs."""
        for variant in (variant for view in self.views for variant in view.variants):
            yield variant.latents
            if variant.mask:
                yield variant.mask
        yield from (caption.embedding for caption in self.captions)


class EncodingHead(_Contract):
    """What holds for all samples of an encoding. `latent_shift` and `latent_scale` are the VAE's, not yet applied.

    `trigger_word` is the one that the captions were given, empty for none.
    """

    encoder_fingerprint: str
    latent_shift: float
    latent_scale: float
    empty_caption: CachedCaption
    trigger_word: str = ""


class DatasetManifest(EncodingHead):
    """Everything a job needs to know of a dataset. Equal data encoded alike has an equal manifest."""

    format_version: Literal[2] = FORMAT_VERSION
    samples: tuple[CachedSample, ...]

    def objects(self) -> Iterator[CachedObject]:
        """Every object it needs."""
        yield self.empty_caption.embedding
        for sample in self.samples:
            yield from sample.objects()


class EncodingPart(_Contract):
    """Samples of an encoding under way that are done, from the offset on that its key says."""

    samples: tuple[CachedSample, ...]


class EncodingEnd(_Contract):
    """How an encoding has ended: the manifest's digest, or why there is none."""

    manifest_digest: str = ""
    failure: str = ""


class ManifestPointer(_Contract):
    """What makes a dataset READY: the digest of its manifest, who encoded it, and counts for people."""

    manifest_digest: str
    encoder_fingerprint: str
    revision: str
    sample_count: int
    cached_count: int


class Revision(_Contract):
    """Which samples a dataset holds: another token after every change."""

    token: str = ""


def dataset_prefix(tenant: str, dataset_id: str) -> str:
    """Where everything of a dataset but its tensors lies."""
    return f"{tenant}/datasets/{dataset_id}/"


def encoding_prefix(tenant: str, encoding_id: str) -> str:
    """Where the samples of an encoding under way are listed as they become ready."""
    return f"{tenant}/encodings/{encoding_id}/"


def cache_prefix(tenant: str, encoder_fingerprint: str) -> str:
    """Where the tensors of one encoder lie."""
    return f"{tenant}/cache/{encoder_fingerprint[:32]}/"


def manifest_key(tenant: str, digest: str) -> str:
    """Where a manifest lies: not under its dataset, since a job keeps it when the dataset is deleted."""
    return f"{tenant}/manifests/{digest}.json"


def hold_key(tenant: str, name: str, job_id: str) -> str:
    """Where it is noted that a job needs a manifest (by digest) or an encoding (by identifier)."""
    return f"{tenant}/holds/{name}/{job_id}"


def part_ends_at(count: int) -> bool:
    """Whether a part of an encoding under way ends after `count` samples."""
    return count % (4 if count <= 64 else 32) == 0


def publish_manifest(store: ObjectStore, tenant: str, head: EncodingHead, samples: Iterable[bytes]) -> str:
    """Write the manifest of samples that are given as JSON; return its digest.

    The samples come as text because thousands of them take a tenth of the memory that way.
    """
    fields = head.model_dump_json(include=set(EncodingHead.model_fields)).removesuffix("}")
    text = f'{fields},"format_version":{FORMAT_VERSION},"samples":[\n'.encode()
    data = text + b",\n".join(samples) + b"\n]}"
    digest = hashlib.sha256(data).hexdigest()
    store.put(manifest_key(tenant, digest), data, content_type="application/json")
    return digest


def read_record(store: ObjectStore, key: str, kind: type[Record]) -> Record:
    """A record written as JSON; raises `ObjectMissing`, or `ObjectDamaged` for anything but what was written."""
    data = store.get_verified(key)
    try:
        return kind.model_validate_json(data)
    except ValueError as error:  # or written by an earlier version
        raise ObjectDamaged(key) from error


def read_pointer(store: ObjectStore, tenant: str, dataset_id: str) -> ManifestPointer | None:
    """The pointer of a READY dataset, or None: also when its samples have changed since it was encoded."""
    prefix = dataset_prefix(tenant, dataset_id)
    try:
        pointer = read_record(store, f"{prefix}manifest.json", ManifestPointer)
    except (ObjectMissing, ObjectDamaged):  # encode again
        return None
    return pointer if pointer.revision == read_revision(store, tenant, dataset_id).token else None


def wanted_encoding_id(store: ObjectStore, tenant: str, dataset_id: str) -> str | None:
    """Identifier of the encoding of a dataset that has not ended, or None."""
    try:
        wanted = store.get_verified(f"{dataset_prefix(tenant, dataset_id)}encoding.json")
    except (ObjectMissing, ObjectDamaged):
        return None
    return str(json.loads(wanted)["encoding_id"])


def read_revision(store: ObjectStore, tenant: str, dataset_id: str) -> Revision:
    """Which samples a dataset holds now."""
    try:
        return read_record(store, f"{dataset_prefix(tenant, dataset_id)}revision.json", Revision)
    except ObjectMissing:
        return Revision()
    except ObjectDamaged:  # not that of any result: encode again
        return Revision(token="damaged")  # noqa: S106 - no secret


def read_manifest(store: ObjectStore, tenant: str, digest: str) -> DatasetManifest:
    """The manifest with this digest; raises `ObjectMissing`, `ObjectDamaged`, or `NotReady` for one of old format."""
    data = store.get(manifest_key(tenant, digest), digest=digest)
    try:
        return DatasetManifest.model_validate_json(data)
    except ValueError as error:
        raise NotReady(
            f"manifest {digest[:12]} has a format of an earlier version",
            reason="MANIFEST_OUTDATED",
            remedy="Encode the dataset again, then create the job again.",
        ) from error
