"""The messages of one upload stream, made from image files as they are sent."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fluxsmith.data import CaptionedImage, Sample
from fluxsmith.errors import InvalidFolder
from fluxsmith.v1.encoder_pb2 import SampleHeader, UploadSamplesRequest, UploadTarget

_CHUNK_BYTES = 1024 * 1024


class UploadStream:
    """The requests of one UploadSamples call, in order.

    gRPC takes them from a thread of its own and tells nothing of an error there, so `failure` keeps it.
    """

    def __init__(self, dataset_id: str, images: Sequence[CaptionedImage], *, on_sent: Callable[[int], None]) -> None:
        self._dataset_id = dataset_id
        self._images = images
        self._on_sent = on_sent
        self.failure: Exception | None = None

    def requests(self) -> Iterator[UploadSamplesRequest]:
        """Yield the target, then each sample; `on_sent` learns how many samples have been handed over."""
        try:
            yield UploadSamplesRequest(target=UploadTarget(dataset_id=self._dataset_id))
            for count, image in enumerate(self._images, start=1):
                yield from _sample_requests(image)
                self._on_sent(count)
        except OSError as error:
            self.failure = InvalidFolder(
                f"the image {image.path} cannot be read: {error.strerror}.",
                reason="IMAGE_UNREADABLE",
                remedy="Leave the files as they are until the upload has ended.",
            )
            raise
        except Exception as error:  # raised again, in the caller's thread
            self.failure = error
            raise


def missing_images(images: Sequence[CaptionedImage], stored: Sequence[Sample]) -> list[CaptionedImage]:
    """Return the images that the service does not hold yet, or holds with other captions, repeats or content."""
    known = {sample.name: sample for sample in stored}
    return [image for image in images if not _is_stored(image, known.get(image.name))]


def _is_stored(image: CaptionedImage, sample: Sample | None) -> bool:
    if sample is None or (sample.captions, sample.repeats) != (image.captions, image.repeats):
        return False
    return sample.content_digest == _digest(image.path)


def _sample_requests(image: CaptionedImage) -> Iterator[UploadSamplesRequest]:
    header = SampleHeader(
        sample_name=image.name,
        captions=image.captions,
        size_bytes=image.path.stat().st_size,
        content_digest=_digest(image.path),
        repeats=image.repeats,
    )
    yield UploadSamplesRequest(sample=header)
    with image.path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield UploadSamplesRequest(chunk=chunk)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
