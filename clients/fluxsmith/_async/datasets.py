"""Datasets: from captioned images, wherever they are, to encoded training data."""

import threading
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, suppress
from os import PathLike
from pathlib import Path
from typing import Unpack
from uuid import uuid4

from fluxsmith._arguments import dataset_id_of, images_of, name_of, path_of, text_of, wrong
from fluxsmith._async._connection import Connection
from fluxsmith._async._fetch import Located, fetch
from fluxsmith._async._resume import resuming
from fluxsmith._async._runtime import CallEnded, EncoderStub, begin, in_thread, outcome, sleep
from fluxsmith._async._upload import Tally, UploadStream, missing_images
from fluxsmith._folder import folder_name, read_folder, skipping, warn_of_left_out
from fluxsmith._names import require_known
from fluxsmith._outage import Outage
from fluxsmith._sources import Source, read_source, source_name
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
from fluxsmith.encoding import ContactSheet, EncodingOptions
from fluxsmith.errors import (
    DatasetFailed,
    FailedPrecondition,
    FluxsmithError,
    InvalidRequest,
    Unavailable,
)
from fluxsmith.keywords import EncodingKeywords
from fluxsmith.v1 import encoder_pb2


class AsyncDatasets:
    """The datasets of the caller's tenant, as `client.datasets`. Every call may raise `FluxsmithError`."""

    def __init__(self, connection: Connection[EncoderStub], *, upload_streams: int) -> None:
        self._connection = connection
        self._upload_streams = _checked(upload_streams, "upload_streams", range(1, 17))

    async def create_from_folder(
        self,
        path: str | PathLike[str],
        *,
        name: str = "",
        wait: bool = True,
        on_progress: OnProgress | None = None,
        options: EncodingOptions | None = None,
        **fields: Unpack[EncodingKeywords],
    ) -> Dataset:
        """Make a dataset of a folder's images and return it once it is READY.

        Each image has its caption beside it in a `.txt` file of the same name. `name` is the folder's unless given.
        What else the folder has is left out, and with `skip_bad_samples` images at fault too, such as those without a
        caption; the logger `fluxsmith` warns of all that, and `read_folder` tells it as data.
        Without `wait` it returns once the encoding has begun, so that a job may be trained with `start_while_encoding`.
        All else as in `encode`. Raises `InvalidFolder` before anything is sent, and `InvalidRequest` or `DatasetFailed`
        for images that the encoder refuses; what was sent of such a dataset is removed again.
        """
        chosen = _merged(options, fields, call="create_from_folder")
        write_options(chosen)  # what cannot travel is told first
        folder = path_of(path)
        images = await in_thread(read_folder, folder, **skipping(chosen))
        warn_of_left_out(images)
        name = name or folder_name(folder)
        return await self._create(images, chosen, name=name, wait=wait, on_progress=on_progress)

    async def create_from(
        self,
        source: Source,
        *,
        image_column: str = "",
        caption_column: str = "",
        name: str = "",
        wait: bool = True,
        on_progress: OnProgress | None = None,
        options: EncodingOptions | None = None,
        **fields: Unpack[EncodingKeywords],
    ) -> Dataset:
        """Make a dataset of captioned images, wherever they are, and return it once it is READY.

        `source` is a folder as in `create_from_folder`; a JSONL or CSV file, its paths relative to itself; an iterable
        of pairs of an image and a caption; or a `datasets.Dataset`. An image is a path, a PIL image, the bytes of an
        image file, or those as base64; a caption is a text, or up to 16 of which training chooses. The columns of a
        file or a `datasets.Dataset` are found by their kind and usual names unless named.

        All else as in `create_from_folder`. Raises `InvalidSource` with every row at fault before anything is sent.
        """
        chosen = _merged(options, fields, call="create_from")
        write_options(chosen)  # what cannot travel is told first
        columns = {"image_column": image_column, "caption_column": caption_column}
        images = await in_thread(read_source, source, **columns, of_folder=skipping(chosen))
        warn_of_left_out(images)
        name = name or source_name(source)
        return await self._create(images, chosen, name=name, wait=wait, on_progress=on_progress)

    async def _create(
        self,
        images: Sequence[CaptionedImage],
        options: EncodingOptions,
        *,
        name: str,
        wait: bool,
        on_progress: OnProgress | None,
    ) -> Dataset:
        dataset = await self.create(name=name)
        try:
            await self.upload(dataset, images, on_progress=on_progress)
            begun = await self.encode(dataset, options=options)
            return await self.wait(dataset, on_progress=on_progress) if wait else begun
        except (Exception, CallEnded) as error:  # cancelled, nobody would know what it is called
            if not _may_go_on(error):
                with suppress(FluxsmithError):
                    await self.delete(dataset)
            raise

    async def create(self, *, name: str = "", request_id: str | None = None) -> Dataset:
        """Make an empty dataset. `name` is for people, up to 200 characters.

        The same `request_id`, up to 64 characters, makes one dataset however often it is created, and gives it as it
        now is; `AlreadyExists` for another name. None means a new one.
        """
        request = encoder_pb2.CreateDatasetRequest(
            request_id=text_of(request_id or str(uuid4()), "request_id"), display_name=name_of(name)
        )
        return read_dataset((await self._connection.call(self._connection.stub.CreateDataset, request)).dataset)

    async def upload(
        self, dataset: Dataset | str, images: Sequence[CaptionedImage], *, on_progress: OnProgress | None = None
    ) -> None:
        """Store the images in the dataset, in several streams. A broken upload goes on with what has not arrived yet.

        A sample of a known name replaces it. A bad image raises `InvalidRequest`; what arrived before stays stored.
        """
        dataset_id, images = dataset_id_of(dataset), images_of(images)
        outage = Outage(self._connection.retry)
        missing = images
        broken = False
        while True:
            try:
                if broken:
                    before, missing = missing, await missing_images(images, await self.samples(dataset))
                    if len(missing) < len(before):
                        outage.recovered()
                await self._send(dataset_id, missing, total_count=len(images), on_progress=on_progress)
                return
            except Unavailable as error:
                broken = True
                await sleep(outage.next_delay_s(error))

    async def _send(
        self, dataset_id: str, images: Sequence[CaptionedImage], *, total_count: int, on_progress: OnProgress | None
    ) -> None:
        """Send the images in streams side by side, and raise what went wrong on either side of one."""

        def on_count(count: int) -> None:
            if on_progress:
                on_progress(DatasetProgress(phase=DatasetPhase.UPLOAD, done_count=count, total_count=total_count))

        done_count = total_count - len(images)
        on_count(done_count)
        tally, stop = Tally(done_count, on_count), threading.Event()
        shares = [images[first :: self._upload_streams] for first in range(self._upload_streams)]
        streams = [UploadStream(dataset_id, share, on_sent=tally.add, stop=stop) for share in shares if share]
        method, metadata = self._connection.stub.UploadSamples, self._connection.metadata
        calls = [begin(method, stream.requests(), metadata) for stream in streams]
        failures: list[Exception] = []
        try:
            for call, stream in zip(calls, streams, strict=True):
                call.add_done_callback(stream.ended)
            for call, stream in zip(calls, streams, strict=True):
                try:
                    with self._connection.translating():
                        await outcome(call)
                except FluxsmithError as failure:
                    failures.append(failure)
                if stream.failure:
                    failures.append(stream.failure)
        finally:
            for call in calls:
                call.cancel()
        if failures:  # what is wrong with the data first: after an outage they would be sent again
            raise min(failures, key=lambda failure: isinstance(failure, Unavailable))

    async def encode(
        self,
        dataset: Dataset | str,
        *,
        options: EncodingOptions | None = None,
        **fields: Unpack[EncodingKeywords],
    ) -> Dataset:
        """Begin to encode and return at once; `wait` or `watch` tell when it is done.

        How is described in `EncodingOptions`, field by field, or given as one value in `options`; a field given beside
        it goes first. Raises `InvalidRequest`, and `FailedPrecondition` while it is being encoded in another way.
        """
        message = write_options(_merged(options, fields, call="encode"))
        request = encoder_pb2.EncodeDatasetRequest(dataset_id=dataset_id_of(dataset), options=message)
        return read_dataset((await self._connection.call(self._connection.stub.EncodeDataset, request)).dataset)

    async def contact_sheet(
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
        first = path_of(path)
        written: list[Path] = []
        async for sheet in self.render(dataset, options=options, samples_per_page=samples_per_page):
            target = first if not written else first.with_stem(f"{first.stem}-{len(written) + 1}")
            await self._fetch(sheet, target)
            written.append(target)
        return tuple(written)

    async def _fetch(self, sheet: ContactSheet, target: Path) -> None:
        async def locate() -> Located:
            return Located(url=sheet.download_url, size_bytes=sheet.size_bytes, content_digest=sheet.content_digest)

        await fetch(locate, target, deadlines=self._connection.deadlines, retry=self._connection.retry)

    async def render(
        self,
        dataset: Dataset | str,
        *,
        options: EncodingOptions | None = None,
        samples_per_page: int | None = None,
    ) -> AsyncIterator[ContactSheet]:
        """Yield the pages of `contact_sheet` without fetching them, each drawn when it is asked for."""
        page_size = 0  # the default
        if samples_per_page is not None:
            page_size = _checked(samples_per_page, "samples_per_page", range(1, 101))
        page_token = ""
        while True:
            request = encoder_pb2.RenderContactSheetRequest(
                dataset_id=dataset_id_of(dataset),
                options=write_options(options) if options is not None else None,
                page_size=page_size,
                page_token=page_token,
            )
            page = await self._connection.call(
                self._connection.stub.RenderContactSheet, request, timeout_s=self._connection.deadlines.render_s
            )
            yield read_sheet(page)
            page_token = page.next_page_token
            if not page_token:
                return

    async def wait(self, dataset: Dataset | str, *, on_progress: OnProgress | None = None) -> Dataset:
        """Return the dataset once it is READY, or raise `DatasetFailed`."""
        async with aclosing(self.watch(dataset)) as states:
            async for seen in states:
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

    def watch(self, dataset: Dataset | str) -> AsyncGenerator[Dataset]:
        """Yield the dataset now and whenever its encoding moves on, until it is READY or FAILED.

        It may also end OPEN: samples came right after. Goes on by itself after the encoder was away.
        """
        request = encoder_pb2.WatchDatasetRequest(dataset_id=dataset_id_of(dataset))
        state, was_encoding = DatasetState.UNKNOWN, False

        async def open_stream() -> AsyncGenerator[Dataset]:
            nonlocal state, was_encoding
            async with aclosing(self._connection.receive(self._connection.stub.WatchDataset, request)) as responses:
                async for response in responses:
                    seen = read_dataset(response.dataset)
                    state, was_encoding = seen.state, was_encoding or seen.state is DatasetState.ENCODING
                    yield seen

        async def ended() -> bool:
            changed_since = was_encoding and state is DatasetState.OPEN
            return changed_since or state in {DatasetState.READY, DatasetState.FAILED}

        return resuming(open_stream, ended=ended, outage=Outage(self._connection.retry))

    async def get(self, dataset_id: str) -> Dataset:
        """Return the dataset as it now is, or raise `NotFound`."""
        request = encoder_pb2.GetDatasetRequest(dataset_id=dataset_id_of(dataset_id, "dataset_id"))
        return read_dataset((await self._connection.call(self._connection.stub.GetDataset, request)).dataset)

    async def samples(self, dataset: Dataset | str) -> tuple[Sample, ...]:
        """Return the samples stored in the dataset, by name."""
        found: list[Sample] = []
        page_token = ""
        while True:
            request = encoder_pb2.GetDatasetRequest(
                dataset_id=dataset_id_of(dataset), include_samples=True, page_size=1000, page_token=page_token
            )
            response = await self._connection.call(self._connection.stub.GetDataset, request)
            found += map(read_sample, response.samples)
            page_token = response.next_page_token
            if not page_token:
                return tuple(sorted(found, key=lambda sample: sample.name))

    async def delete(self, dataset: Dataset | str) -> None:
        """Remove the dataset and its images. Raises `FailedPrecondition` while it is being encoded."""
        request = encoder_pb2.DeleteDatasetRequest(dataset_id=dataset_id_of(dataset))
        await self._connection.call(self._connection.stub.DeleteDataset, request)

    async def list(self) -> AsyncIterator[Dataset]:
        """Yield every dataset, page by page."""
        page_token = ""
        while True:
            request = encoder_pb2.ListDatasetsRequest(page_token=page_token)
            page = await self._connection.call(self._connection.stub.ListDatasets, request)
            for dataset in page.datasets:
                yield read_dataset(dataset)
            page_token = page.next_page_token
            if not page_token:
                return


def _may_go_on(error: BaseException) -> bool:
    """Whether a dataset that could not be made may be encoded again: it failed for no sample's sake."""
    if isinstance(error, DatasetFailed):
        return not error.dataset.bad_samples
    return isinstance(error, FluxsmithError) and not isinstance(error, InvalidRequest)


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


def _merged(options: EncodingOptions | None, fields: EncodingKeywords, *, call: str) -> EncodingOptions:
    """Return the options with the fields in their place; raises `TypeError` for a field that does not exist."""
    require_known(fields, EncodingKeywords, call=f"Datasets.{call}")
    return (options or EncodingOptions()).merged(EncodingOptions(**fields))


def _checked(value: int, name: str, allowed: range) -> int:
    """Return the value, or raise `InvalidRequest`."""
    if type(value) is int and value in allowed:
        return value
    raise wrong(name, value, f"a whole number from {allowed[0]} to {allowed[-1]}")
