"""The encoder's RPCs: protobuf to domain and back, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any

import grpc
from fluxsmith.v1 import encoder_pb2 as pb
from fluxsmith.v1 import encoder_pb2_grpc
from google.protobuf.timestamp_pb2 import Timestamp

from services.common.cache import CachedObject
from services.common.caller import Caller, caller_from
from services.common.errors import NotFound, NotReady
from services.common.fields import check_length, page_of, require_id
from services.common.object_store import ObjectStore
from services.common.server import MAX_MESSAGE_BYTES
from services.common.settings import ServiceSettings
from services.encoder.datasets import Datasets, SampleProblem
from services.encoder.encoding import DatasetEncoder, Progress
from services.encoder.images import IMAGE_FORMATS
from services.encoder.models import ModelThread
from services.encoder.requests import check_captions, encoding_options, latents_keys, sample_record
from services.encoder.runs import EncodingRuns
from services.encoder.settings import EncoderSettings
from services.encoder.upload import Upload

WATCH_INTERVAL_S, IDLE_WATCH_INTERVAL_S = 0.2, 1.0
MODEL_CALLERS = 8
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
        # Of their own: they wait for the model thread, and must not keep others from reading the store meanwhile.
        self._model_callers = ThreadPoolExecutor(MODEL_CALLERS, thread_name_prefix="model-caller")

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
                upload.expect(await self._sample_names(caller, part.target.dataset_id))
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
        records = await asyncio.to_thread(self._datasets.samples, caller.tenant, request.dataset_id)
        names, _ = page_of([r.sample_name for r in records], request.page_size, request.page_token)
        listed = set(names)
        samples = _that_fit([pb.Sample(**r.model_dump()) for r in records if r.sample_name in listed])
        more = bool(samples) and samples[-1].sample_name != records[-1].sample_name
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
        last: pb.Dataset | None = None
        while True:
            dataset = await self._dataset(caller, request.dataset_id)
            if dataset != last:
                yield pb.WatchDatasetResponse(dataset=dataset)
                last = dataset
            if dataset.state in (pb.DATASET_STATE_READY, pb.DATASET_STATE_FAILED):
                return
            busy = dataset.state == pb.DATASET_STATE_ENCODING
            await asyncio.sleep(WATCH_INTERVAL_S if busy else IDLE_WATCH_INTERVAL_S)

    async def EncodePrompts(self, request: pb.EncodePromptsRequest, context: Context) -> pb.EncodePromptsResponse:
        caller = _caller(context)
        check_captions("captions", request.captions, self._settings, most=64, empty_allowed=True)
        embed = partial(self._encoder.embed_captions, caller.tenant, list(request.captions))
        cached = await asyncio.get_running_loop().run_in_executor(self._model_callers, embed)
        store = self._datasets.store
        return pb.EncodePromptsResponse(embeddings=[_reference(store, caption.embedding) for caption in cached])

    async def DecodeLatents(self, request: pb.DecodeLatentsRequest, context: Context) -> pb.DecodeLatentsResponse:
        caller = _caller(context)
        keys = await asyncio.to_thread(latents_keys, request.latents_uris, caller, self._datasets.store)
        loop = asyncio.get_running_loop()
        decode = self._encoder.decode_to_png
        images = [await loop.run_in_executor(self._model_callers, decode, key) for key in keys]
        return pb.DecodeLatentsResponse(images=[_reference(self._datasets.store, image) for image in images])

    async def GetCapabilities(
        self, request: pb.EncoderServiceGetCapabilitiesRequest, context: Context
    ) -> pb.EncoderServiceGetCapabilitiesResponse:
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
        )

    async def _dataset(self, caller: Caller, dataset_id: str) -> pb.Dataset:
        return await asyncio.to_thread(self._read_dataset, caller.tenant, dataset_id)

    async def _dataset_unless_deleted(self, caller: Caller, dataset_id: str) -> pb.Dataset | None:
        try:
            return await self._dataset(caller, dataset_id)
        except NotFound:
            return None  # some stores list the folders of deleted objects for a while

    def _read_dataset(self, tenant: str, dataset_id: str) -> pb.Dataset:
        record = self._datasets.get(tenant, dataset_id)
        dataset = pb.Dataset(
            dataset_id=dataset_id,
            display_name=record.display_name,
            create_time=_timestamp(record.create_time),
            state=pb.DATASET_STATE_OPEN,
        )
        progress = self._runs.progress(tenant, dataset_id)
        dataset.sample_count = (progress and progress.total) or self._datasets.sample_count(tenant, dataset_id)
        if progress or self._datasets.wanted_encoding(tenant, dataset_id):
            progress = progress or Progress()
            dataset.state = pb.DATASET_STATE_ENCODING
            dataset.encoded_count, dataset.cached_count = progress.encoded, progress.cached
            dataset.problems.extend(map(_problem, progress.bad))
        elif outcome := self._datasets.outcome(tenant, dataset_id):
            dataset.problems.extend(map(_problem, outcome.problems))
            if outcome.failure:
                dataset.state, dataset.failure_message = pb.DATASET_STATE_FAILED, outcome.failure
            elif pointer := self._datasets.pointer(tenant, dataset_id):
                dataset.state, dataset.manifest_digest = pb.DATASET_STATE_READY, pointer.manifest_digest
                dataset.encoded_count, dataset.cached_count = pointer.sample_count, pointer.cached_count
        return dataset

    async def _sample_names(self, caller: Caller, dataset_id: str) -> set[str]:
        records = await asyncio.to_thread(self._datasets.samples, caller.tenant, dataset_id)
        return {record.sample_name for record in records}


def _caller(context: Context) -> Caller:
    return caller_from(context.invocation_metadata() or ())


def _that_fit(samples: list[pb.Sample]) -> list[pb.Sample]:
    """As many samples, from the first, as a message holds."""
    sizes = accumulate(sample.ByteSize() for sample in samples)
    return [sample for sample, size in zip(samples, sizes, strict=True) if size <= MAX_MESSAGE_BYTES // 2]


def _timestamp(time: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp


def _problem(problem: SampleProblem) -> pb.SampleProblem:
    reason = pb.SampleProblemReason.Value(f"SAMPLE_PROBLEM_REASON_{problem.problem.name}")
    return pb.SampleProblem(sample_name=problem.sample_name, reason=reason, message=problem.message)


def _reference(store: ObjectStore, stored: CachedObject) -> pb.ObjectReference:
    return pb.ObjectReference(uri=store.uri(stored.key), content_digest=stored.digest, size_bytes=stored.size_bytes)
