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
)
from services.common.errors import NotReady, Unavailable
from services.common.object_store import ObjectMissing, ObjectStore

T = TypeVar("T")
R = TypeVar("R", EncodingHead, EncodingPart, EncodingEnd)
POLL_S = 0.5
PATIENCE_S = 600.0


class ArrivingSamples(Sequence[CachedSample]):
    """Like the manifest's samples, but indexing waits until the sample is there and `len` until all are.

    Waiting raises what `while_waiting` raises, `NotReady` when the encoding has failed, and `Unavailable` when no
    sample has come for ten minutes.
    """

    def __init__(self, store: ObjectStore, tenant: str, encoding_id: str, *, while_waiting: Callable[[], None]) -> None:
        self._store = store
        self._tenant = tenant
        self._prefix = encoding_prefix(tenant, encoding_id)
        self._while_waiting = while_waiting
        self._samples: list[CachedSample] = []
        self._manifest_digest = ""

    def head(self) -> EncodingHead:
        """What holds for all samples."""
        return self._awaited(lambda: self._read(EncodingHead, "head.json"))

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
        if part := self._read(EncodingPart, f"{len(self._samples):06}.json"):
            self._samples += part.samples
            return True
        end = self._read(EncodingEnd, "end.json")
        if end and end.failure:
            raise NotReady(
                f"the encoding of the dataset failed: {end.failure}",
                reason="DATASET_FAILED",
                remedy="Mend the dataset, encode it again, then create the job again.",
            )
        if end:
            self._samples = list(read_manifest(self._store, self._tenant, end.manifest_digest).samples)
            self._manifest_digest = end.manifest_digest
        return end is not None

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
            return kind.model_validate_json(self._store.get(f"{self._prefix}{name}"))
        except ObjectMissing:
            return None
