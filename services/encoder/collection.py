"""Collect what nothing needs any more: tensors, manifests, lists of ended encodings, replaced originals.

Something is collected only when no dataset, job or encoding needs it, and has not for as long as the grace period says.
How a sweep and those who begin to use something keep out of each other's way stands in `services/common/sweep.py`.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

from services.common.cache import (
    EncodingEnd,
    ManifestPointer,
    dataset_prefix,
    encoding_prefix,
    manifest_key,
    read_manifest,
    read_record,
)
from services.common.errors import NotReady, ServiceError
from services.common.object_store import ListedObject, ObjectDamaged, ObjectMissing, ObjectStore
from services.common.sweep import ABANDONED, BEAT, SweepMarker, marker_key, read_marker
from services.encoder.datasets import LOST, Datasets
from services.encoder.tensor_cache import IndexEntry

log = logging.getLogger(__name__)

CLOSE_S = 5.0
SETTLE_S = 5.0  # longer than anyone takes from looking for the marker to writing or refreshing an object


@dataclass(kw_only=True)
class Swept:
    """What a sweep has removed. `busy` means that it removed nothing because something is under way."""

    objects: int = 0
    size_bytes: int = 0
    busy: bool = False


class Collector:
    """Sweeps tenants. Several encoders may each have one."""

    def __init__(self, datasets: Datasets, *, grace: timedelta, settle_s: float = SETTLE_S) -> None:
        self.stopping = threading.Event()
        self._datasets = datasets
        self._store = datasets.store
        self._grace = grace
        self._settle_s = settle_s

    def sweep(self, tenant: str) -> Swept:
        """Remove what nothing of the tenant has needed for the grace period.

        Looks first whether there is anything to be removed at all, since users wait while a marker is there.
        """
        if read_marker(self._store, tenant):
            return Swept(busy=True)
        look = _Sweep(self._datasets, tenant, datetime.now(UTC) - self._grace, token="", stopping=self.stopping)
        look.run()
        if not look.swept.objects:
            return look.swept
        token = secrets.token_hex(8)
        write_marker(self._store, tenant, token)
        try:
            self.stopping.wait(self._settle_s)
            sweep = _Sweep(self._datasets, tenant, self._old_before(tenant), token=token, stopping=self.stopping)
            if not sweep.mine() or sweep.encoding_under_way():
                return Swept(busy=True)
            sweep.run()
            return sweep.swept
        finally:
            if (marker := read_marker(self._store, tenant)) and marker.token == token:
                self._store.delete(marker_key(tenant))

    def _old_before(self, tenant: str) -> datetime:
        """By the store's clock, which is the one that objects are dated by."""
        (marker,) = self._store.listed(marker_key(tenant))
        return marker.changed - self._grace


class _Sweep:
    """One sweep of one tenant. Without a token for its marker it removes nothing and counts what it would remove."""

    def __init__(
        self, datasets: Datasets, tenant: str, old_before: datetime, *, token: str, stopping: threading.Event
    ) -> None:
        self._datasets = datasets
        self._store: ObjectStore = datasets.store
        self._tenant = tenant
        self._token = token
        self._stopping = stopping
        self._last_beat_s = time.monotonic()
        self._old_before = old_before
        self._removed: set[str] = set()
        self.swept = Swept()

    def run(self) -> None:
        """Manifests first: only those that stay keep tensors."""
        held = {hold.key.split("/")[2] for hold in self._listed(f"{self._tenant}/holds/")}
        in_use = held | self._encoded_while_held(held) | set(self._of_datasets())
        self._sweep_manifests(in_use)
        needed = set(self._needed(in_use))
        lost = set()
        for listed in self._old(f"{self._tenant}/cache/"):
            if "/samples/" not in listed.key and listed.key not in needed:
                self._remove(listed)
                lost.add(listed.key)
        if lost:
            self._sweep_index(lost)
        for listed in self._old(f"{self._tenant}/encodings/"):
            if listed.key.split("/")[2] not in held:
                self._remove(listed)
        for dataset_id in list(self._datasets.ids(self._tenant)):
            self._sweep_dataset(dataset_prefix(self._tenant, dataset_id), dataset_id)

    def mine(self) -> bool:
        """Whether no other sweep has begun at the same moment."""
        marker = read_marker(self._store, self._tenant)
        return marker is not None and marker.token == self._token

    def encoding_under_way(self) -> bool:
        """Whether tensors are being put to use right now."""
        ids = list(self._datasets.ids(self._tenant))
        return any(self._store.exists(f"{dataset_prefix(self._tenant, one)}encoding.json") for one in ids)

    def _of_datasets(self) -> Iterator[str]:
        """Digests of manifests that datasets point to, also those whose samples have changed since."""
        for dataset_id in self._datasets.ids(self._tenant):
            try:
                key = f"{dataset_prefix(self._tenant, dataset_id)}manifest.json"
                yield read_record(self._store, key, ManifestPointer).manifest_digest
            except (ObjectMissing, ObjectDamaged):  # then the dataset is not READY
                continue

    def _encoded_while_held(self, held: set[str]) -> set[str]:
        """Digests of the manifests that encodings gave to jobs which wait for them."""
        digests = set()
        for name in held:
            try:
                key = f"{encoding_prefix(self._tenant, name)}end.json"
                digests.add(read_record(self._store, key, EncodingEnd).manifest_digest)
            except ObjectMissing:
                continue
        return digests

    def _sweep_manifests(self, in_use: set[str]) -> None:
        """Note since when a manifest is not in use, and remove it after the grace period."""
        folder = f"{self._tenant}/unreferenced/"
        since = {listed.key.removeprefix(folder): listed for listed in self._listed(folder)}
        for listed in list(self._store.listed(f"{self._tenant}/manifests/")):
            digest = listed.key.rpartition("/")[2].removesuffix(".json")
            noted = since.get(digest)
            if digest in in_use:
                if noted:
                    self._store.delete(noted.key)
            elif noted is None:
                self._store.put(f"{folder}{digest}", b"")
            elif noted.changed < self._old_before:
                self._remove(listed)
                self._remove(noted)

    def _needed(self, in_use: set[str]) -> Iterator[str]:
        """Keys of all objects that the remaining manifests list; raises when one that is in use does not tell."""
        for listed in list(self._store.listed(f"{self._tenant}/manifests/")):
            if listed.key in self._removed:
                continue
            digest = listed.key.rpartition("/")[2].removesuffix(".json")
            try:
                for cached in read_manifest(self._store, self._tenant, digest).objects():
                    yield cached.key
            except (ObjectMissing, ObjectDamaged, NotReady) as error:
                if digest in in_use:
                    raise
                log.warning("manifest %s is of no use to anyone: %s", manifest_key(self._tenant, digest), error.message)

    def _sweep_index(self, lost: set[str]) -> None:
        """Remove index entries whose tensors are gone; else the next encoding would call them damaged."""
        for listed in self._old(f"{self._tenant}/cache/"):
            if "/samples/" in listed.key:
                try:
                    entry = IndexEntry.model_validate_json(self._store.get_verified(listed.key))
                    useless = any(cached.key in lost for cached in entry.sample.objects())
                except (ObjectMissing, ObjectDamaged, ValueError):
                    useless = True
                if useless:
                    self._remove(listed)

    def _sweep_dataset(self, prefix: str, dataset_id: str) -> None:
        """Originals that no sample has any more, contact sheets, and what is left of a dataset that was deleted."""
        if not self._store.exists(f"{prefix}dataset.json"):
            for listed in self._old(prefix):
                self._remove(listed)
            return
        originals = list(self._old(f"{prefix}originals/"))
        if originals:
            digests = {record.content_digest for record in self._datasets.samples(self._tenant, dataset_id)}
            for listed in originals:
                if LOST not in digests and listed.key.rpartition("/")[2] not in digests:
                    self._remove(listed)
        for listed in list(self._old(f"{prefix}contact_sheets/")):
            self._remove(listed)

    def _old(self, prefix: str) -> Iterator[ListedObject]:
        """Objects under a prefix that were last written before the grace period."""
        return (listed for listed in self._listed(prefix) if listed.changed < self._old_before)

    def _listed(self, prefix: str) -> list[ListedObject]:
        """All objects under a prefix, with signs of life while they are read."""
        found = []
        for listed in self._store.listed(prefix):
            self._beat()
            found.append(listed)
        return found

    def _remove(self, listed: ListedObject) -> None:
        self._beat()
        if self._token:
            self._store.delete(listed.key)
        self._removed.add(listed.key)
        self.swept.objects += 1
        self.swept.size_bytes += listed.size_bytes

    def _beat(self) -> None:
        """Renew the marker now and then; raise when this sweep was stopped, or others may take it for dead."""
        silent_s = time.monotonic() - self._last_beat_s
        if self._stopping.is_set() or (self._token and silent_s > ABANDONED.total_seconds() / 2):
            raise NotReady(
                f"the sweep of tenant {self._tenant!r} was interrupted",
                reason="SWEEP_INTERRUPTED",
                remedy="Nothing is wrong: the next one goes on.",
            )
        if self._token and silent_s > BEAT.total_seconds():
            write_marker(self._store, self._tenant, self._token)
            self._last_beat_s = time.monotonic()


def write_marker(store: ObjectStore, tenant: str, token: str) -> None:
    """Say that a sweep is at work."""
    marker = SweepMarker(token=token, beat=datetime.now(UTC))
    store.put(marker_key(tenant), marker.model_dump_json().encode())


class CollectorThread:
    """Sweeps all tenants now and then, until closed."""

    def __init__(self, collector: Collector, store: ObjectStore, *, interval_s: float) -> None:
        self._collector = collector
        self._store = store
        self._interval_s = interval_s
        self._thread = threading.Thread(target=self._run, name="collector", daemon=True)

    def start(self) -> None:
        """Begin, with the first sweep after one interval."""
        if self._interval_s:
            self._thread.start()

    def close(self) -> None:
        """Interrupt the sweep under way, if any; it takes its marker with it."""
        self._collector.stopping.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_S)

    def _run(self) -> None:
        while not self._collector.stopping.wait(self._interval_s):
            self._try(self._sweep_all)

    def _sweep_all(self) -> None:
        for tenant in list(self._store.folders("")):
            if self._collector.stopping.is_set():
                return
            self._try(partial(self._sweep, tenant))  # what is damaged of one tenant keeps nothing of the others

    def _sweep(self, tenant: str) -> None:
        swept = self._collector.sweep(tenant)
        if swept.objects:
            log.info("collected %d objects, %.1f MB, of tenant %s", swept.objects, swept.size_bytes / 1e6, tenant)

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except ServiceError as error:
            log.warning("collection: %s", error.log_line)
        except Exception:  # the broad except of this thread: what was not collected now is the next time
            log.exception("collection failed")
