"""Datasets: from a folder of captioned images to encoded training data."""

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path
from uuid import uuid4

from fluxsmith._connection import Connection
from fluxsmith._download import download
from fluxsmith._folder import folder_name, read_folder
from fluxsmith._resume import Outage, resuming
from fluxsmith._upload import UploadStream, missing_images
from fluxsmith._wire_datasets import read_dataset, read_sample, read_sheet, write_options
from fluxsmith.data import (
    CaptionedImage,
    Dataset,
    DatasetPhase,
    DatasetProgress,
    DatasetState,
    OnProgress,
    Sample,
)
from fluxsmith.encoding import AlphaPolicy, ContactSheet, EncodingOptions, LatentForm
from fluxsmith.errors import (
    DatasetFailed,
    FailedPrecondition,
    FieldViolation,
    FluxsmithError,
    InvalidRequest,
    Unavailable,
)
from fluxsmith.v1 import encoder_pb2
from fluxsmith.v1.encoder_pb2_grpc import EncoderServiceStub

# A page of a hundred large photographs takes the encoder longer than an answer from its records.
_SHEET_TIMEOUT_S = 300.0


class Datasets:
    """The datasets of the caller's tenant, as `client.datasets`. Every call may raise `FluxsmithError`."""

    def __init__(self, connection: Connection, *, outage_s: float) -> None:
        self._connection = connection
        self._stub = EncoderServiceStub(connection.channel)
        self._outage_s = outage_s

    def create_from_folder(  # noqa: PLR0913  # the fields of EncodingOptions, spelled out as in `encode`
        self,
        path: str | PathLike[str],
        *,
        name: str = "",
        wait: bool = True,
        on_progress: OnProgress | None = None,
        options: EncodingOptions | None = None,
        resolution_px: int | None = None,
        resolutions_px: tuple[int, ...] = (),
        flip: bool | None = None,
        bucket_step_px: int | None = None,
        upscale: bool | None = None,
        random_crops: int | None = None,
        crop_seed: int | None = None,
        latent_form: LatentForm | None = None,
        alpha_policy: AlphaPolicy | None = None,
        background_color: str = "",
        trigger_word: str = "",
        skip_bad_samples: bool | None = None,
        max_bad_share: float | None = None,
    ) -> Dataset:
        """Make a dataset of a folder's images and return it once it is READY.

        Each image has its caption beside it in a `.txt` file of the same name. `name` is the folder's unless given.
        Without `wait` it returns once the encoding has begun, so that a job may be trained with `start_while_encoding`.
        All else as in `encode`. Raises `InvalidFolder` before anything is sent, and `InvalidRequest` or `DatasetFailed`
        for images that the encoder refuses; what was sent of such a dataset is removed again.
        """
        given = EncodingOptions(
            resolution_px=resolution_px,
            resolutions_px=resolutions_px,
            flip=flip,
            bucket_step_px=bucket_step_px,
            upscale=upscale,
            random_crops=random_crops,
            crop_seed=crop_seed,
            latent_form=latent_form,
            alpha_policy=alpha_policy,
            background_color=background_color,
            trigger_word=trigger_word,
            skip_bad_samples=skip_bad_samples,
            max_bad_share=max_bad_share,
        )
        chosen = (options or EncodingOptions()).merged(given)
        return self._create_from_folder(Path(path), chosen, name=name, wait=wait, on_progress=on_progress)

    def _create_from_folder(
        self, folder: Path, options: EncodingOptions, *, name: str, wait: bool, on_progress: OnProgress | None
    ) -> Dataset:
        images = read_folder(folder)
        write_options(options)  # what cannot travel is told before the images are sent
        dataset = self.create(name=name or folder_name(folder))
        try:
            self.upload(dataset, images, on_progress=on_progress)
            begun = self.encode(dataset, options=options)
            return self.wait(dataset, on_progress=on_progress) if wait else begun
        except (InvalidRequest, DatasetFailed) as error:
            # A dataset that failed for no sample's sake is kept: it may be encoded again.
            if not isinstance(error, DatasetFailed) or error.dataset.bad_samples:
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

    def encode(  # noqa: PLR0913  # the fields of EncodingOptions, spelled out so that editors and checkers know them
        self,
        dataset: Dataset | str,
        *,
        options: EncodingOptions | None = None,
        resolution_px: int | None = None,
        resolutions_px: tuple[int, ...] = (),
        flip: bool | None = None,
        bucket_step_px: int | None = None,
        upscale: bool | None = None,
        random_crops: int | None = None,
        crop_seed: int | None = None,
        latent_form: LatentForm | None = None,
        alpha_policy: AlphaPolicy | None = None,
        background_color: str = "",
        trigger_word: str = "",
        skip_bad_samples: bool | None = None,
        max_bad_share: float | None = None,
    ) -> Dataset:
        """Begin to encode and return at once; `wait` or `watch` tell when it is done.

        How is described in `EncodingOptions`, field by field, or given as one value in `options`; a field given beside
        it goes first. Raises `InvalidRequest`, and `FailedPrecondition` while it is being encoded in another way.
        """
        given = EncodingOptions(
            resolution_px=resolution_px,
            resolutions_px=resolutions_px,
            flip=flip,
            bucket_step_px=bucket_step_px,
            upscale=upscale,
            random_crops=random_crops,
            crop_seed=crop_seed,
            latent_form=latent_form,
            alpha_policy=alpha_policy,
            background_color=background_color,
            trigger_word=trigger_word,
            skip_bad_samples=skip_bad_samples,
            max_bad_share=max_bad_share,
        )
        message = write_options((options or EncodingOptions()).merged(given))
        request = encoder_pb2.EncodeDatasetRequest(dataset_id=_id_of(dataset), options=message)
        return read_dataset(self._connection.call(self._stub.EncodeDataset, request).dataset)

    def contact_sheet(
        self,
        dataset: Dataset | str,
        path: str | PathLike[str],
        *,
        options: EncodingOptions | None = None,
        samples_per_page: int | None = None,
    ) -> tuple[Path, ...]:
        """Draw what training will see of the dataset and write it as PNG; return the files, one a page.

        Shows every crop, its size, its captions and what is wrong with it; nothing needs to be encoded before. The
        first page goes to `path`, further ones beside it with `-2`, `-3` and so on before the suffix, each replacing
        what was there. `options` are those to try; None means as it was encoded last, or the defaults.
        `samples_per_page` is 1 to 100; default 24.
        """
        first = Path(path)
        written: list[Path] = []
        for number, sheet in enumerate(self.render(dataset, options=options, samples_per_page=samples_per_page), 1):
            target = first if number == 1 else first.with_stem(f"{first.stem}-{number}")
            download(sheet.download_url, target, size_bytes=sheet.size_bytes, digest=sheet.content_digest)
            written.append(target)
        return tuple(written)

    def render(
        self,
        dataset: Dataset | str,
        *,
        options: EncodingOptions | None = None,
        samples_per_page: int | None = None,
    ) -> Iterator[ContactSheet]:
        """Yield the pages of `contact_sheet` without fetching them, each drawn when it is asked for."""
        page_token = ""
        while True:
            request = encoder_pb2.RenderContactSheetRequest(
                dataset_id=_id_of(dataset),
                options=write_options(options) if options is not None else None,
                page_size=_page_size(samples_per_page),
                page_token=page_token,
            )
            page = self._connection.call(self._stub.RenderContactSheet, request, timeout_s=_SHEET_TIMEOUT_S)
            yield read_sheet(page)
            page_token = page.next_page_token
            if not page_token:
                return

    def wait(self, dataset: Dataset | str, *, on_progress: OnProgress | None = None) -> Dataset:
        """Return the dataset once it is READY, or raise `DatasetFailed`."""
        for seen in self.watch(dataset):
            if on_progress:
                on_progress(_encode_progress(seen))
            if seen.state is DatasetState.READY:
                return seen
            if seen.state is DatasetState.FAILED:
                raise DatasetFailed(seen)
        raise FailedPrecondition(
            "samples were added to the dataset right after it was encoded.",
            reason="DATASET_CHANGED",
            remedy="Encode it again.",
        )

    def watch(self, dataset: Dataset | str) -> Iterator[Dataset]:
        """Yield the dataset now and whenever its encoding moves on, until it is READY or FAILED.

        It may also end OPEN: samples came right after. Goes on by itself after the encoder was away.
        """
        request = encoder_pb2.WatchDatasetRequest(dataset_id=_id_of(dataset))
        state, was_encoding = DatasetState.UNKNOWN, False

        def open_stream() -> Generator[Dataset, None, None]:
            nonlocal state, was_encoding
            for response in self._connection.receive(self._stub.WatchDataset, request):
                seen = read_dataset(response.dataset)
                state, was_encoding = seen.state, was_encoding or seen.state is DatasetState.ENCODING
                yield seen

        def ended() -> bool:
            changed_since = was_encoding and state is DatasetState.OPEN
            return changed_since or state in {DatasetState.READY, DatasetState.FAILED}

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


def _encode_progress(seen: Dataset) -> DatasetProgress:
    """Return how far the encoding has come; samples that were left out count as done."""
    if seen.progress:
        done_count = seen.progress.done_count
    else:
        done_count = seen.sample_count if seen.state is DatasetState.READY else seen.encoded_count
    return DatasetProgress(
        phase=DatasetPhase.ENCODE,
        done_count=done_count,
        total_count=seen.sample_count,
        cached_count=seen.cached_count,
        encoding=seen.progress,
    )


def _page_size(samples_per_page: int | None) -> int:
    """Return the samples a page as they travel, where 0 means the default; raises `InvalidRequest`."""
    if samples_per_page is not None and samples_per_page not in range(1, 101):
        text = f"samples_per_page cannot be {samples_per_page!r}"
        violation = FieldViolation(field="samples_per_page", description=text)
        raise InvalidRequest(f"{text}.", reason="FIELD_INVALID", remedy="Use 1 to 100.", violations=(violation,))
    return samples_per_page or 0


def _id_of(dataset: Dataset | str) -> str:
    return dataset if isinstance(dataset, str) else dataset.id
