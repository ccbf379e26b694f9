"""Datasets: from a folder of captioned images to encoded training data."""

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path
from uuid import uuid4

from fluxsmith._connection import Connection
from fluxsmith._folder import folder_name, read_folder
from fluxsmith._resume import Outage, resuming
from fluxsmith._upload import UploadStream, missing_images
from fluxsmith._wire import read_dataset, read_sample
from fluxsmith.data import (
    CaptionedImage,
    Dataset,
    DatasetPhase,
    DatasetProgress,
    DatasetState,
    OnProgress,
    Sample,
)
from fluxsmith.errors import DatasetFailed, FluxsmithError, InvalidRequest, Unavailable
from fluxsmith.v1 import encoder_pb2
from fluxsmith.v1.encoder_pb2_grpc import EncoderServiceStub


class Datasets:
    """The datasets of the caller's tenant, as `client.datasets`. Every call may raise `FluxsmithError`."""

    def __init__(self, connection: Connection, *, outage_s: float) -> None:
        self._connection = connection
        self._stub = EncoderServiceStub(connection.channel)
        self._outage_s = outage_s

    def create_from_folder(
        self,
        path: str | PathLike[str],
        *,
        name: str = "",
        flip: bool = False,
        resolution_px: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> Dataset:
        """Make a dataset of a folder's images and return it once it is READY.

        Each image has its caption beside it in a `.txt` file of the same name. `name` is the folder's unless given;
        `flip` and `resolution_px` as in `encode`. Raises `InvalidFolder` before anything is sent, and `InvalidRequest`
        or `DatasetFailed` for images that the encoder refuses; what was sent of such a dataset is removed again.
        """
        folder = Path(path)
        images = read_folder(folder)
        dataset = self.create(name=name or folder_name(folder))
        try:
            self.upload(dataset, images, on_progress=on_progress)
            self.encode(dataset, flip=flip, resolution_px=resolution_px)
            return self.wait(dataset, on_progress=on_progress)
        except (InvalidRequest, DatasetFailed) as error:
            # A dataset that failed for no sample's sake is kept: it may be encoded again.
            if not isinstance(error, DatasetFailed) or error.dataset.problems:
                with suppress(FluxsmithError):
                    self.delete(dataset)
            raise

    def create(self, *, name: str = "") -> Dataset:
        """Make an empty dataset. `name` is for people, up to 200 characters."""
        request = encoder_pb2.CreateDatasetRequest(request_id=str(uuid4()), display_name=name)
        return read_dataset(self._connection.call(self._stub.CreateDataset, request).dataset)

    def upload(
        self, dataset: Dataset | str, images: Sequence[CaptionedImage], *, on_progress: OnProgress | None = None
    ) -> None:
        """Store the images in the dataset. A broken upload goes on with what has not arrived yet.

        A sample of a known name replaces it. A bad image raises `InvalidRequest`; images before it stay stored.
        """
        dataset_id = _id_of(dataset)
        outage = Outage(limit_s=self._outage_s)
        missing = list(images)
        broken = False
        while True:
            try:
                if broken:
                    before, missing = missing, missing_images(images, self.samples(dataset))
                    if len(missing) < len(before):
                        outage.recovered()
                self._send(dataset_id, missing, total_count=len(images), on_progress=on_progress)
                return
            except Unavailable as error:
                broken = True
                time.sleep(outage.next_delay_s(error))

    def _send(
        self, dataset_id: str, images: Sequence[CaptionedImage], *, total_count: int, on_progress: OnProgress | None
    ) -> None:
        """Send the images in one stream, and raise what went wrong on either side of it."""

        def on_sent(count: int) -> None:
            done_count = total_count - len(images) + count
            if on_progress:
                on_progress(DatasetProgress(phase=DatasetPhase.UPLOAD, done_count=done_count, total_count=total_count))

        on_sent(0)
        if not images:
            return
        stream = UploadStream(dataset_id, images, on_sent=on_sent)
        try:
            self._connection.send(self._stub.UploadSamples, stream.requests())
        finally:
            if stream.failure:
                raise stream.failure

    def encode(
        self,
        dataset: Dataset | str,
        *,
        flip: bool = False,
        resolution_px: int | None = None,
        skip_bad_samples: bool = False,
    ) -> Dataset:
        """Begin to encode and return at once; `wait` or `watch` tell when it is done.

        `flip` adds a mirrored variant of each image. `resolution_px` is the side of the square whose area no image
        exceeds, a multiple of 16 from 64 to 2048; None means the size the base model was trained at.
        `skip_bad_samples` leaves bad samples out instead of failing.
        """
        skip, fail = encoder_pb2.BAD_SAMPLE_POLICY_SKIP, encoder_pb2.BAD_SAMPLE_POLICY_FAIL
        try:
            options = encoder_pb2.EncodingOptions(
                resolution_px=resolution_px, flip=flip, bad_sample_policy=skip if skip_bad_samples else fail
            )
        except (TypeError, ValueError) as error:
            raise InvalidRequest(f"resolution_px cannot be {resolution_px!r}.", reason="OPTIONS_INVALID") from error
        request = encoder_pb2.EncodeDatasetRequest(dataset_id=_id_of(dataset), options=options)
        return read_dataset(self._connection.call(self._stub.EncodeDataset, request).dataset)

    def wait(self, dataset: Dataset | str, *, on_progress: OnProgress | None = None) -> Dataset:
        """Return the dataset once it is READY, or raise `DatasetFailed`."""
        for seen in self.watch(dataset):
            if on_progress:
                progress = DatasetProgress(
                    phase=DatasetPhase.ENCODE,
                    done_count=seen.encoded_count,
                    total_count=seen.sample_count,
                    cached_count=seen.cached_count,
                )
                on_progress(progress)
            if seen.state is DatasetState.READY:
                return seen
            if seen.state is DatasetState.FAILED:
                raise DatasetFailed(seen)
        raise AssertionError("a watch ends READY or FAILED")

    def watch(self, dataset: Dataset | str) -> Iterator[Dataset]:
        """Yield the dataset now and whenever its encoding moves on, until it is READY or FAILED.

        Goes on by itself after the encoder was away.
        """
        request = encoder_pb2.WatchDatasetRequest(dataset_id=_id_of(dataset))
        state = DatasetState.UNKNOWN

        def open_stream() -> Generator[Dataset, None, None]:
            nonlocal state
            for response in self._connection.receive(self._stub.WatchDataset, request):
                seen = read_dataset(response.dataset)
                state = seen.state
                yield seen

        def ended() -> bool:
            return state in {DatasetState.READY, DatasetState.FAILED}

        return resuming(open_stream, ended=ended, outage=Outage(limit_s=self._outage_s))

    def get(self, dataset_id: str) -> Dataset:
        """Return the dataset as it now is, or raise `NotFound`."""
        request = encoder_pb2.GetDatasetRequest(dataset_id=dataset_id)
        return read_dataset(self._connection.call(self._stub.GetDataset, request).dataset)

    def samples(self, dataset: Dataset | str) -> tuple[Sample, ...]:
        """Return the samples stored in the dataset, by name."""
        found: list[Sample] = []
        page_token = ""
        while True:
            request = encoder_pb2.GetDatasetRequest(
                dataset_id=_id_of(dataset), include_samples=True, page_size=1000, page_token=page_token
            )
            response = self._connection.call(self._stub.GetDataset, request)
            found += map(read_sample, response.samples)
            page_token = response.next_page_token
            if not page_token:
                return tuple(found)

    def delete(self, dataset: Dataset | str) -> None:
        """Remove the dataset and its images. Raises `FailedPrecondition` while it is being encoded."""
        request = encoder_pb2.DeleteDatasetRequest(dataset_id=_id_of(dataset))
        self._connection.call(self._stub.DeleteDataset, request)

    def list(self) -> Iterator[Dataset]:
        """Yield every dataset, page by page."""
        page_token = ""
        while True:
            request = encoder_pb2.ListDatasetsRequest(page_token=page_token)
            page = self._connection.call(self._stub.ListDatasets, request)
            yield from (read_dataset(dataset) for dataset in page.datasets)
            page_token = page.next_page_token
            if not page_token:
                return


def _id_of(dataset: Dataset | str) -> str:
    return dataset if isinstance(dataset, str) else dataset.id
