"""Encodings under way: at most one a dataset, a few at a time, taken up again after a restart."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from services.common.errors import NotReady, ServiceError, Unavailable
from services.encoder.datasets import Datasets, EncodingOptions, EncodingOutcome
from services.encoder.encoding import DatasetEncoder, Progress

log = logging.getLogger(__name__)

ENCODINGS_AT_ONCE = 2
RETRY_S = 5.0


class EncodingRuns:
    """Runs encodings in threads and remembers how far each has come. Safe to use from several threads."""

    def __init__(self, datasets: Datasets, encoder: DatasetEncoder) -> None:
        self._datasets = datasets
        self._encoder = encoder
        self._executor = ThreadPoolExecutor(ENCODINGS_AT_ONCE, thread_name_prefix="encoding")
        self._running: dict[tuple[str, str], _Running] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()

    def start(self, tenant: str, dataset_id: str, options: EncodingOptions) -> None:
        """Note durably that the dataset is to be encoded, and begin unless it is under way.

        Raises `NotReady` when it is under way with other options.
        """
        with self._lock:  # held over the store's answer: who asks meanwhile must not be told more than is noted
            running = self._running.get((tenant, dataset_id))
            if running is None:
                self._datasets.begin_encoding(tenant, dataset_id, options)
                self._running[tenant, dataset_id] = _Running(options=options)
                self._executor.submit(self._run, tenant, dataset_id, options)
            elif running.options != options:
                raise NotReady(
                    f"dataset {dataset_id!r} is being encoded with other options",
                    reason="DATASET_ENCODING",
                    remedy="Wait until it is READY or FAILED (WatchDataset), then encode with these.",
                )

    def take_up(self) -> int:
        """Begin what an encoder before this one did not finish; return how many."""
        count = 0
        for tenant, dataset_id, options in self._datasets.all_wanted_encodings():
            self.start(tenant, dataset_id, options)
            count += 1
        return count

    def progress(self, tenant: str, dataset_id: str) -> Progress | None:
        """How far the encoding under way has come, or None when there is none."""
        running = self._running.get((tenant, dataset_id))
        return running.progress if running else None

    def close(self) -> None:
        """Stop at the next sample; what is not finished is taken up by the next encoder."""
        self._stopping.set()
        self._executor.shutdown(cancel_futures=True)

    def _run(self, tenant: str, dataset_id: str, options: EncodingOptions) -> None:
        while not self._stopping.is_set():
            try:
                outcome = self._outcome(tenant, dataset_id, options)
                with self._lock:  # no start falls between the end of this one and its being forgotten
                    self._datasets.end_encoding(tenant, dataset_id, outcome)
                    del self._running[tenant, dataset_id]
                return
            except _Stopping:
                log.info("dataset %s: stopped; the next encoder goes on", dataset_id)
            except Unavailable as error:
                log.warning("dataset %s: %s; trying again in %.0f s", dataset_id, error.message, RETRY_S)
                self._stopping.wait(RETRY_S)

    def _outcome(self, tenant: str, dataset_id: str, options: EncodingOptions) -> EncodingOutcome:
        try:
            return self._encoder.encode_dataset(tenant, dataset_id, options, self._on_progress(tenant, dataset_id))
        except (Unavailable, _Stopping):
            raise
        except ServiceError as error:
            return EncodingOutcome(failure=error.line)
        except Exception:  # the broad except of this thread: the encoding failed, the service goes on
            log.exception("encoding of dataset %s failed", dataset_id)
            return EncodingOutcome(failure="internal error; the encoder's log has the traceback")

    def _on_progress(self, tenant: str, dataset_id: str) -> Callable[[Progress], None]:
        def update(progress: Progress) -> None:
            if self._stopping.is_set():
                raise _Stopping
            self._running[tenant, dataset_id].progress = progress

        return update


@dataclass(kw_only=True)
class _Running:
    """An encoding under way."""

    options: EncodingOptions
    progress: Progress = field(default_factory=Progress)


class _Stopping(Exception):
    """The encoder is being stopped."""
