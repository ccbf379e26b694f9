"""The messages of an upload, made from images as they are sent, and the streams in which they go side by side."""

import hashlib
import threading
from collections.abc import AsyncIterator, Callable, Sequence

from fluxsmith_text import quoted

from fluxsmith._async._runtime import in_thread
from fluxsmith.data import CaptionedImage, Sample
from fluxsmith.errors import InvalidSource
from fluxsmith.v1.encoder_pb2 import SampleHeader, UploadSamplesRequest, UploadTarget

_CHUNK_BYTES = 1024 * 1024


class UploadStream:
    """The requests of one UploadSamples call, in order, which end early once `stop` is set.

    gRPC takes them where no error of theirs could be told, so they end at one, and `failure` keeps it.
    """

    def __init__(
        self,
        dataset_id: str,
        images: Sequence[CaptionedImage],
        *,
        on_sent: Callable[[], None],
        stop: threading.Event,
    ) -> None:
        self._dataset_id = dataset_id
        self._images = images
        self._on_sent = on_sent
        self._stop = stop
        self._sent_count = 0
        self.failure: Exception | None = None

    async def requests(self) -> AsyncIterator[UploadSamplesRequest]:
        """Yield the target, then each sample; `on_sent` is called whenever a sample has been handed over."""
        yield UploadSamplesRequest(target=UploadTarget(dataset_id=self._dataset_id))
        for image in self._images:
            if self._stop.is_set():
                return
            try:
                messages = _messages(image, await in_thread(_read, image))
            except Exception as error:  # noqa: BLE001  # raised again where the caller waits
                self.failure = error
                return
            for message in messages:
                yield message
            self._sent_count += 1
            try:
                self._on_sent()
            except Exception as error:  # noqa: BLE001  # the caller's own, raised again where it waits
                self.failure = error
                return

    def ended(self, _: object) -> None:
        """Let the other streams of the upload end too, if this one ended before all was handed over."""
        if self._sent_count < len(self._images):
            self._stop.set()


class Tally:
    """Counts the samples that all streams have handed over, and tells `on_count` of each new count in order."""

    def __init__(self, count: int, on_count: Callable[[int], None]) -> None:
        self._count = count
        self._on_count = on_count
        self._lock = threading.Lock()

    def add(self) -> None:
        """Count one more."""
        with self._lock:
            self._count += 1
            self._on_count(self._count)


async def missing_images(images: Sequence[CaptionedImage], stored: Sequence[Sample]) -> list[CaptionedImage]:
    """Return the images that the service does not hold yet, or holds with other captions, repeats or content."""
    known = {sample.name: sample for sample in stored}
    return [image for image in images if not await in_thread(_is_stored, image, known.get(image.name))]


def _is_stored(image: CaptionedImage, sample: Sample | None) -> bool:
    if sample is None or (sample.captions, sample.repeats) != (image.captions, image.repeats):
        return False
    return sample.content_digest == _digest(_read(image))


def _read(image: CaptionedImage) -> bytes:
    try:
        content = image.read()
        if isinstance(content, bytes):
            return content
        message = f"the content of the image {quoted(image.name)} is of type {type(content).__name__}, not bytes."
        raise InvalidSource(message, reason="IMAGE_UNREADABLE", remedy="Give the bytes of an image file.")
    except OSError as error:
        message = f"the image {image.path or image.name} cannot be read: {error.strerror or error}."
        remedy = "Leave the files as they are until the upload has ended."
        raise InvalidSource(message, reason="IMAGE_UNREADABLE", remedy=remedy) from error


def _messages(image: CaptionedImage, content: bytes) -> list[UploadSamplesRequest]:
    header = SampleHeader(
        sample_name=image.name,
        captions=image.captions,
        size_bytes=len(content),
        content_digest=_digest(content),
        repeats=image.repeats,
    )
    begins = range(0, len(content), _CHUNK_BYTES)
    chunks = [UploadSamplesRequest(chunk=content[begin : begin + _CHUNK_BYTES]) for begin in begins]
    return [UploadSamplesRequest(sample=header), *chunks]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
