"""Encodings under way: at most one a dataset, a few at a time, taken up again after a restart."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from services.common.cache import ManifestPointer
from services.common.errors import ServiceError, Unavailable
from services.encoder.datasets import Datasets
from services.encoder.encoding import DatasetEncoder, Progress
from services.encoder.records import EncodingOptions, EncodingOutcome, WantedEncoding

log = logging.getLogger(__name__)

ENCODINGS_AT_ONCE = 2
RETRY_S = 5.0


class EncodingRuns:
    """Runs encodings in threads and remembers how far each has come. Safe to use from several threads."""

    def __init__(self, datasets: Datasets, encoder: DatasetEncoder) -> None:
        self._datasets = datasets
        self._encoder = encoder
        self._executor = ThreadPoolExecutor(ENCODINGS_AT_ONCE, thread_name_prefix="encoding")
        self._running: dict[tuple[str, str], Progress] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()

    def start(self, tenant: str, dataset_id: str, options: EncodingOptions) -> None:
        """Note durably that the dataset is to be encoded, and begin unless it is under way.

        Raises `NotReady` when it is under way with other options.
        """
        with self._lock:  # held over the store's answer: who asks meanwhile must not be told more than is noted
            wanted = self._datasets.begin_encoding(tenant, dataset_id, options)
            if (tenant, dataset_id) not in self._running:
                self._running[tenant, dataset_id] = Progress()
                self._executor.submit(self._run, tenant, dataset_id, wanted)

    def take_up(self) -> int:
        """Begin what an encoder before this one did not finish; return how many."""
        count = 0
        for tenant, dataset_id, wanted in self._datasets.all_wanted_encodings():
            try:
                self.start(tenant, dataset_id, wanted.options)
                count += 1
            except Unavailable:
                raise
            except ServiceError as error:  # one dataset in disorder is no reason not to serve the others
                log.warning("dataset %s of tenant %s is not taken up: %s", dataset_id, tenant, error.log_line)
        return count

    def progress(self, tenant: str, dataset_id: str) -> Progress | None:
        """How far the encoding under way has come, or None when there is none."""
        return self._running.get((tenant, dataset_id))

    def close(self) -> None:
        """Stop at the next sample; what is not finished is taken up by the next encoder."""
        self._stopping.set()
        self._executor.shutdown(cancel_futures=True)
        self._encoder.close()

    def _run(self, tenant: str, dataset_id: str, wanted: WantedEncoding) -> None:
        while not self._stopping.is_set():
            try:
                outcome, pointer = self._outcome(tenant, dataset_id, wanted)
                with self._lock:  # no start falls between the end of this one and its being forgotten
                    next_wanted = self._datasets.end_encoding(tenant, dataset_id, wanted, outcome, pointer)
                    if next_wanted is None:
                        del self._running[tenant, dataset_id]
                        return
                    wanted = next_wanted  # begun through another encoder, which may have died since
            except _Stopping:
                log.info("dataset %s: stopped; the next encoder goes on", dataset_id)
            except Unavailable as error:
                log.warning("dataset %s: %s; trying again in %.0f s", dataset_id, error.told, RETRY_S)
                self._stopping.wait(RETRY_S)
            except Exception:  # what is wanted stays noted: the next EncodeDataset, or the next encoder, goes on
                log.exception("the end of the encoding of dataset %s could not be noted", dataset_id)
                with self._lock:
                    del self._running[tenant, dataset_id]
                return

    def _outcome(
        self, tenant: str, dataset_id: str, wanted: WantedEncoding
    ) -> tuple[EncodingOutcome, ManifestPointer | None]:
        revision = self._datasets.revision(tenant, dataset_id)
        try:
            return self._encoder.encode_dataset(tenant, dataset_id, wanted, self._on_progress(tenant, dataset_id))
        except (Unavailable, _Stopping):
            raise
        except ServiceError as error:
            failure = error.line
        except Exception:  # the broad except of this thread: the encoding failed, the service goes on
            log.exception("encoding of dataset %s failed", dataset_id)
            failure = "internal error; the encoder's log has the traceback"
        return EncodingOutcome(failure=failure, options=wanted.options, revision=revision), None

    def _on_progress(self, tenant: str, dataset_id: str) -> Callable[[Progress], None]:
        def update(progress: Progress) -> None:
            if self._stopping.is_set():
                raise _Stopping
            self._running[tenant, dataset_id] = progress

        return update


class _Stopping(Exception):
    """The encoder is being stopped."""
