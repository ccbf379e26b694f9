"""The state of one upload stream: which sample is arriving, and whether its parts come in the right order."""

from __future__ import annotations

import hashlib
from tempfile import SpooledTemporaryFile

from fluxsmith_text import quoted

from services.common.errors import LimitExceeded
from services.common.fields import invalid_field
from services.encoder.datasets import sample_key
from services.encoder.records import SampleRecord
from services.encoder.settings import EncoderSettings

LARGEST_CHUNK_BYTES = 1024 * 1024
IN_MEMORY_BYTES = 1024 * 1024  # of an unfinished sample; the rest waits on disk, however many streams there are


class Upload:
    """Takes the parts of a stream in order and hands out samples as they become complete."""

    def __init__(self, limits: EncoderSettings) -> None:
        self._limits = limits
        self._keys: set[str] = set()
        self._record: SampleRecord | None = None
        self._data = SpooledTemporaryFile(IN_MEMORY_BYTES)  # noqa: SIM115 - closed when it is replaced or dropped
        self._received = 0
        self.dataset_id = ""

    def begin(self, dataset_id: str) -> None:
        """The stream's first part: where the samples go."""
        if self.dataset_id:
            raise invalid_field("target", "came twice", "Send one target, as the first message.")
        if not dataset_id:
            raise invalid_field("target.dataset_id", "is empty", "Name a dataset that you have created.")
        self.dataset_id = dataset_id

    def expect(self, known_keys: set[str]) -> None:
        """Count samples that the dataset has already, by `sample_key`, towards its limit."""
        self._keys = known_keys

    def begin_sample(self, record: SampleRecord) -> None:
        """A sample's header."""
        if not self.dataset_id:
            raise invalid_field("part", "is a sample before the target", "Send the target as the first message.")
        self._refuse_incomplete()
        self._keys.add(sample_key(record.sample_name))
        if len(self._keys) > self._limits.max_samples:
            raise LimitExceeded(
                f"dataset {self.dataset_id!r} would have more than {self._limits.max_samples} samples",
                reason="TOO_MANY_SAMPLES",
                remedy="Split the data, or raise FLUXSMITH_ENCODER_MAX_SAMPLES.",
            )
        self._record = record
        self._received = 0
        self._data.seek(0)
        self._data.truncate()

    def add(self, chunk: bytes) -> None:
        """Bytes of the sample begun last."""
        if self._record is None:
            raise invalid_field("chunk", "belongs to no sample", "Send a sample's header before its bytes.")
        if len(chunk) > LARGEST_CHUNK_BYTES:
            raise invalid_field("chunk", f"has {len(chunk)} bytes", f"Send at most {LARGEST_CHUNK_BYTES} a message.")
        self._data.write(chunk)
        self._received += len(chunk)
        if self._received > self._record.size_bytes:
            remedy = f"Send as many bytes as size_bytes says, {self._record.size_bytes}."
            raise invalid_field(f"chunk of sample {quoted(self._record.sample_name)}", "goes past its end", remedy)

    def take_complete(self) -> tuple[SampleRecord, bytes] | None:
        """The sample whose last chunk has just come, its digest checked, or None."""
        record = self._record
        if record is None or self._received < record.size_bytes:
            return None
        self._data.seek(0)
        data = self._data.read()
        if hashlib.sha256(data).hexdigest() != record.content_digest:
            raise invalid_field(
                f"content_digest of sample {quoted(record.sample_name)}",
                "does not match the bytes that arrived",
                "Send the sample again.",
                reason="DIGEST_MISMATCH",
            )
        self._record = None
        return record, data

    def end(self) -> None:
        """The stream has ended; raises when it did so in the middle of a sample or without a target."""
        if not self.dataset_id:
            raise invalid_field("part", "never was a target", "Send the target as the first message.")
        self._refuse_incomplete()

    def _refuse_incomplete(self) -> None:
        if self._record is not None:
            remedy = f"Send {self._record.size_bytes - self._received} more bytes of it."
            raise invalid_field(f"sample {quoted(self._record.sample_name)}", "is incomplete", remedy)
