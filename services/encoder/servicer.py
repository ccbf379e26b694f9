"""The encoder's RPCs: protobuf to domain and back, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import grpc
from fluxsmith.v1 import encoder_pb2 as pb
from fluxsmith.v1 import encoder_pb2_grpc
from fluxsmith_text import quoted

from services.common.caller import Caller, caller_from
from services.common.errors import NotFound, NotReady
from services.common.fields import check_length, invalid_field, page_limit, page_of, require_id
from services.common.object_store import ObjectDamaged
from services.common.settings import ServiceSettings
from services.encoder import wire
from services.encoder.datasets import LOST, Datasets
from services.encoder.encoding import DatasetEncoder, Progress
from services.encoder.images.decoding import IMAGE_FORMATS
from services.encoder.images.render import ContactSheets, samples_a_sheet
from services.encoder.latents import decode_to_png
from services.encoder.models import ModelThread
from services.encoder.records import EncodingOptions, SampleProblem, SampleRecord
from services.encoder.requests import check_captions, encoding_options, latents_keys, sample_record, sheet_size
from services.encoder.runs import EncodingRuns
from services.encoder.settings import EncoderSettings
from services.encoder.unread import shortened, unread
from services.encoder.upload import Upload
from services.encoder.watching import DatasetWatching, Seen, Stage

MODEL_CALLERS = 8
SHEET_LIFETIME = timedelta(hours=1)
_STAGES = {pb.DATASET_STATE_OPEN: Stage.OPEN, pb.DATASET_STATE_ENCODING: Stage.ENCODING}
Context = grpc.aio.ServicerContext[Any, Any]


class EncoderServicer(encoder_pb2_grpc.EncoderServiceServicer):
    """EncoderService of the contract. Everything that blocks runs in threads."""

    def __init__(
        self,
        *,
        datasets: Datasets,
        runs: EncodingRuns,
        encoder: DatasetEncoder,
        models: ModelThread,
        service: ServiceSettings,
        settings: EncoderSettings,
    ) -> None:
        self._datasets = datasets
        self._runs = runs
        self._encoder = encoder
        self._models = models
        self._service = service
        self._settings = settings
        self._watching = DatasetWatching(self._seen)
        # Of their own: they wait for the model thread, and must not keep others from reading the store meanwhile.
        self._model_callers = ThreadPoolExecutor(MODEL_CALLERS, thread_name_prefix="model-caller")
        self._drawers = ThreadPoolExecutor(2, thread_name_prefix="contact-sheet")
        self._sheets = ContactSheets(
            datasets,
            self._drawers,
            unread=partial(unread, models.models),
            max_image_pixels=settings.max_image_pixels,
        )

    def close(self) -> None:
        """End the threads; what they do is finished."""
        for threads in (self._model_callers, self._drawers):
            threads.shutdown(cancel_futures=True)

    async def CreateDataset(self, request: pb.CreateDatasetRequest, context: Context) -> pb.CreateDatasetResponse:
        caller = _caller(context)
        check_length("request_id", request.request_id, 64)
        check_length("display_name", request.display_name, 200)
        record = await asyncio.to_thread(
            self._datasets.create, caller.tenant, display_name=request.display_name, request_id=request.request_id
        )
        return pb.CreateDatasetResponse(dataset=await self._dataset(caller, record.dataset_id))

    async def UploadSamples(
        self, request_iterator: AsyncIterator[pb.UploadSamplesRequest], context: Context
    ) -> pb.UploadSamplesResponse:
        caller = _caller(context)
        upload = Upload(self._settings)
        stored = 0
        async for part in request_iterator:
            if part.WhichOneof("part") == "target":
                upload.begin(part.target.dataset_id)
                await asyncio.to_thread(self._datasets.refuse_while_encoding, caller.tenant, part.target.dataset_id)
                upload.expect(await asyncio.to_thread(self._sample_keys, caller, part.target.dataset_id))
            elif part.WhichOneof("part") == "sample":
                upload.begin_sample(sample_record(part.sample, self._settings))
            else:
                upload.add(part.chunk)
            if complete := upload.take_complete():
                await asyncio.to_thread(self._datasets.put_sample, caller.tenant, upload.dataset_id, *complete)
                stored += 1
        upload.end()
        return pb.UploadSamplesResponse(stored_count=stored)

    async def EncodeDataset(self, request: pb.EncodeDatasetRequest, context: Context) -> pb.EncodeDatasetResponse:
        caller = _caller(context)
        options = encoding_options(request.options, self._models.models.default_resolution_px)
        dataset = await self._dataset(caller, request.dataset_id)
        if not dataset.sample_count:
            raise NotReady(
                f"dataset {request.dataset_id!r} has no samples",
                reason="DATASET_EMPTY",
                remedy="Upload samples, then encode.",
            )
        await asyncio.to_thread(self._runs.start, caller.tenant, request.dataset_id, options)
        return pb.EncodeDatasetResponse(dataset=await self._dataset(caller, request.dataset_id))

    async def GetDataset(self, request: pb.GetDatasetRequest, context: Context) -> pb.GetDatasetResponse:
        caller = _caller(context)
        dataset = await self._dataset(caller, request.dataset_id)
        if not request.include_samples:
            return pb.GetDatasetResponse(dataset=dataset)
        size = page_limit(request.page_size)
        records = await asyncio.to_thread(self._page, caller, request.dataset_id, size, request.page_token)
        problems = await asyncio.to_thread(self._problems, caller, request.dataset_id)
        samples = wire.sample_messages(records[:size], problems)
        more = len(samples) < len(records)
        return pb.GetDatasetResponse(
            dataset=dataset, samples=samples, next_page_token=samples[-1].sample_name if more else ""
        )

    async def ListDatasets(self, request: pb.ListDatasetsRequest, context: Context) -> pb.ListDatasetsResponse:
        caller = _caller(context)
        if request.page_token:
            require_id("dataset", request.page_token)
        ids = await asyncio.to_thread(lambda: list(self._datasets.ids(caller.tenant)))
        page, token = page_of(ids, request.page_size, request.page_token)
        found = [await self._dataset_unless_deleted(caller, dataset_id) for dataset_id in page]
        return pb.ListDatasetsResponse(datasets=filter(None, found), next_page_token=token)

    async def DeleteDataset(self, request: pb.DeleteDatasetRequest, context: Context) -> pb.DeleteDatasetResponse:
        caller = _caller(context)
        await asyncio.to_thread(self._datasets.delete, caller.tenant, request.dataset_id)
        return pb.DeleteDatasetResponse()

    async def WatchDataset(
        self, request: pb.WatchDatasetRequest, context: Context
    ) -> AsyncIterator[pb.WatchDatasetResponse]:
        caller = _caller(context)
        async with aclosing(self._watching.states(caller.tenant, request.dataset_id)) as states:
            async for dataset in states:
                yield pb.WatchDatasetResponse(dataset=dataset)

    async def RenderContactSheet(
        self, request: pb.RenderContactSheetRequest, context: Context
    ) -> pb.RenderContactSheetResponse:
        caller = _caller(context)
        dataset = await self._dataset(caller, request.dataset_id)
        asked = request.options if request.HasField("options") else None
        options = await self._options(caller, request.dataset_id, asked)
        size = samples_a_sheet(sheet_size(request.page_size), options)
        records = await asyncio.to_thread(self._page, caller, request.dataset_id, size, request.page_token)
        shown = records[:size]
        title = f"{dataset.display_name or dataset.dataset_id}: {len(shown)} of {dataset.sample_count} samples"
        image = await asyncio.to_thread(
            self._sheets.render, caller.tenant, request.dataset_id, shown, options, title=title
        )
        more = len(records) > size
        return pb.RenderContactSheetResponse(
            image=wire.reference(self._datasets.store, image),
            download_url=self._datasets.store.download_url(image.key, SHEET_LIFETIME),
            next_page_token=records[size - 1].sample_name if more else "",
        )

    async def EncodePrompts(self, request: pb.EncodePromptsRequest, context: Context) -> pb.EncodePromptsResponse:
        caller = _caller(context)
        check_captions("captions", request.captions, self._settings, most=64, empty_allowed=True)
        embed = partial(self._encoder.embed_captions, caller.tenant, list(request.captions))
        cached = await asyncio.get_running_loop().run_in_executor(self._model_callers, embed)
        store = self._datasets.store
        return pb.EncodePromptsResponse(
            embeddings=[wire.reference(store, caption.embedding) for caption in cached],
            warnings=[
                f"{quoted(shortened(caption, 40))}: {what}"
                for caption in dict.fromkeys(request.captions)
                for _, what in unread(self._models.models, caption)
            ],
        )

    async def DecodeLatents(self, request: pb.DecodeLatentsRequest, context: Context) -> pb.DecodeLatentsResponse:
        caller = _caller(context)
        keys = await asyncio.to_thread(latents_keys, request.latents_uris, caller, self._datasets.store)
        loop = asyncio.get_running_loop()
        decode = partial(decode_to_png, self._datasets.store, self._models)
        images = [await loop.run_in_executor(self._model_callers, decode, key) for key in keys]
        return pb.DecodeLatentsResponse(images=[wire.reference(self._datasets.store, image) for image in images])

    async def GetCapabilities(
        self, request: pb.EncoderServiceGetCapabilitiesRequest, context: Context
    ) -> pb.EncoderServiceGetCapabilitiesResponse:
        _caller(context)
        models, limits = self._models.models, self._settings
        return pb.EncoderServiceGetCapabilitiesResponse(
            version=version("fluxsmith"),
            base_model=Path(self._service.base_model).name,
            encoder_fingerprint=models.fingerprint,
            t5_precision=limits.t5_precision,
            t5_tokens=models.t5_tokens,
            default_resolution_px=models.default_resolution_px,
            image_formats=IMAGE_FORMATS,
            max_image_bytes=limits.max_image_bytes,
            max_image_pixels=limits.max_image_pixels,
            max_caption_bytes=limits.max_caption_bytes,
            max_samples=limits.max_samples,
            loaded_models=models.loaded(),
            memory_peak_bytes=models.memory_peak_bytes(),
            device=models.device.type,
            vae_tiling=limits.vae_tiling,
        )

    async def _dataset(self, caller: Caller, dataset_id: str) -> pb.Dataset:
        return await asyncio.to_thread(self._read_dataset, caller.tenant, dataset_id)

    async def _dataset_unless_deleted(self, caller: Caller, dataset_id: str) -> pb.Dataset | None:
        try:
            return await self._dataset(caller, dataset_id)
        except NotFound:
            return None  # some stores list the folders of deleted objects for a while
        except ObjectDamaged as error:
            return pb.Dataset(dataset_id=dataset_id, state=pb.DATASET_STATE_FAILED, failure_message=error.line)

    def _read_dataset(self, tenant: str, dataset_id: str) -> pb.Dataset:
        record = self._datasets.get(tenant, dataset_id)
        dataset = pb.Dataset(
            dataset_id=dataset_id,
            display_name=record.display_name,
            create_time=wire.timestamp(record.create_time),
            state=pb.DATASET_STATE_OPEN,
        )
        progress = self._runs.progress(tenant, dataset_id)
        dataset.sample_count = (progress and progress.total) or self._datasets.sample_count(tenant, dataset_id)
        wanted = self._datasets.wanted_encoding(tenant, dataset_id)
        if wanted:
            progress = progress or Progress()
            dataset.state = pb.DATASET_STATE_ENCODING
            dataset.encoded_count, dataset.cached_count = progress.encoded, progress.cached
            dataset.progress.CopyFrom(wire.progress_message(progress))
            dataset.options.CopyFrom(wire.options_message(wanted.options))
            wire.add_problems(dataset, progress.problems)
        elif outcome := self._datasets.outcome(tenant, dataset_id):
            wire.add_problems(dataset, outcome.problems)
            if outcome.options:
                dataset.options.CopyFrom(wire.options_message(outcome.options))
            if outcome.failure:
                dataset.state, dataset.failure_message = pb.DATASET_STATE_FAILED, outcome.failure
            elif pointer := self._datasets.pointer(tenant, dataset_id):
                dataset.state, dataset.manifest_digest = pb.DATASET_STATE_READY, pointer.manifest_digest
                dataset.encoded_count, dataset.cached_count = pointer.sample_count, pointer.cached_count
        return dataset

    def _seen(self, tenant: str, dataset_id: str) -> Seen[pb.Dataset]:
        dataset = self._read_dataset(tenant, dataset_id)
        return Seen(stage=_STAGES.get(dataset.state, Stage.ENDED), dataset=dataset)

    def _sample_keys(self, caller: Caller, dataset_id: str) -> set[str]:
        return set(self._datasets.sample_keys(caller.tenant, dataset_id))

    def _page(self, caller: Caller, dataset_id: str, size: int, page_token: str) -> list[SampleRecord]:
        """One page of samples, and one more if there is one. Lost records are left out: to be uploaded again."""
        if page_token and not self._datasets.has_sample(caller.tenant, dataset_id, page_token):
            raise invalid_field("page_token", f"is {page_token[:80]!r}", "Send next_page_token as it came.")
        records = self._datasets.samples(caller.tenant, dataset_id, after=page_token or None)
        return list(islice((record for record in records if record.content_digest != LOST), size + 1))

    def _problems(self, caller: Caller, dataset_id: str) -> dict[str, list[SampleProblem]]:
        """What the encoding under way or the last one found wrong, by sample."""
        progress = self._runs.progress(caller.tenant, dataset_id)
        outcome = None if progress else self._datasets.outcome(caller.tenant, dataset_id)
        found: dict[str, list[SampleProblem]] = {}
        for problem in progress.problems if progress else outcome.problems if outcome else ():
            found.setdefault(problem.sample_name, []).append(problem)
        return found

    async def _options(self, caller: Caller, dataset_id: str, asked: pb.EncodingOptions | None) -> EncodingOptions:
        """Options as asked for, else those of the encoding under way or the last one, else the defaults."""
        if asked is None:
            wanted = await asyncio.to_thread(self._datasets.wanted_encoding, caller.tenant, dataset_id)
            outcome = await asyncio.to_thread(self._datasets.outcome, caller.tenant, dataset_id)
            known = wanted.options if wanted else outcome.options if outcome else None
            if known:
                return known
        return encoding_options(asked or pb.EncodingOptions(), self._models.models.default_resolution_px)


def _caller(context: Context) -> Caller:
    return caller_from(context.invocation_metadata() or ())
