"""Samples of a dataset that is still being encoded, for jobs that begin before it is done.

The encoder lists finished samples part by part in the order of the manifest to come (`services/common/cache.py`), and
writes the manifest last. Who reads either sees the same samples in the same order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar, overload

from services.common.cache import (
    CachedSample,
    EncodingEnd,
    EncodingHead,
    EncodingPart,
    encoding_prefix,
    read_manifest,
    read_record,
)
from services.common.errors import NotReady, Unavailable
from services.common.object_store import ObjectDamaged, ObjectMissing, ObjectStore

T = TypeVar("T")
R = TypeVar("R", EncodingHead, EncodingPart, EncodingEnd)
POLL_S = 0.5
PATIENCE_S = 120.0


class ArrivingSamples(Sequence[CachedSample]):
    """Like the manifest's samples, but indexing waits until the sample is there and `len` until all are.

    Waiting raises what `while_waiting` raises, `NotReady` when the encoding has failed, and `Unavailable` when no
    sample has come for two minutes, or when the manifest is not what was listed before it: then another encoder has
    gone on with the encoding, and the job must begin anew.
    """

    def __init__(self, store: ObjectStore, tenant: str, encoding_id: str, *, while_waiting: Callable[[], None]) -> None:
        self._store = store
        self._tenant = tenant
        self._prefix = encoding_prefix(tenant, encoding_id)
        self._while_waiting = while_waiting
        self._samples: list[CachedSample] = []
        self._manifest_digest = ""
        self._head: EncodingHead | None = None

    def head(self) -> EncodingHead:
        """What holds for all samples."""
        self._head = self._head or self._awaited(lambda: self._read(EncodingHead, "head.json"))
        return self._head

    def manifest_digest(self) -> str:
        """Digest of the manifest, once the encoding has ended."""
        while not self._manifest_digest:
            self._awaited(lambda: self._more() or None)
        return self._manifest_digest

    def __len__(self) -> int:
        self.manifest_digest()
        return len(self._samples)

    @overload
    def __getitem__(self, index: int) -> CachedSample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[CachedSample]: ...
    def __getitem__(self, index: int | slice) -> CachedSample | Sequence[CachedSample]:
        if isinstance(index, slice) or index < 0:
            len(self)
            return self._samples[index]
        while index >= len(self._samples) and not self._manifest_digest:
            self._awaited(lambda: self._more() or None)
        return self._samples[index]

    def _more(self) -> bool:
        """Take in what has come; whether there was anything, or nothing is to come."""
        if self._manifest_digest:
            return True
        end = self._read(EncodingEnd, "end.json")
        if end and end.failure:
            raise NotReady(
                f"the encoding of the dataset failed: {end.failure}",
                reason="DATASET_FAILED",
                remedy="Mend the dataset, encode it again, then create the job again.",
            )
        if end:
            manifest = read_manifest(self._store, self._tenant, end.manifest_digest)
            same_encoder = self._head is None or self._head.encoder_fingerprint == manifest.encoder_fingerprint
            if not same_encoder or list(manifest.samples[: len(self._samples)]) != self._samples:
                raise Unavailable(
                    "the samples were encoded anew by another encoder while the job was using them",
                    reason="ENCODING_CHANGED",
                    remedy="The job begins anew by itself.",
                )
            self._samples = list(manifest.samples)
            self._manifest_digest = end.manifest_digest
        elif part := self._read(EncodingPart, f"{len(self._samples):06}.json"):
            self._samples += part.samples
        else:
            return False
        return True

    def _awaited(self, look: Callable[[], T | None]) -> T:
        deadline_s = time.monotonic() + PATIENCE_S
        while (found := look()) is None:
            self._while_waiting()
            if time.monotonic() > deadline_s:
                raise Unavailable(
                    f"no sample has been encoded for {PATIENCE_S:.0f} s",
                    reason="ENCODING_STALLED",
                    remedy="Check that the encoder runs; the job goes on by itself.",
                )
            time.sleep(POLL_S)
        return found

    def _read(self, kind: type[R], name: str) -> R | None:
        try:
            return read_record(self._store, f"{self._prefix}{name}", kind)
        except (ObjectMissing, ObjectDamaged):  # an encoding that goes on writes it again; its end makes up for it
            return None
