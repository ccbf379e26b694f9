"""The client: one object that holds both services and is closed when done."""

from collections.abc import AsyncGenerator
from os import PathLike
from types import TracebackType
from typing import Self, Unpack
from uuid import uuid4

from fluxsmith._adapter_upload import check_adapter, digest_of, put_file
from fluxsmith._arguments import (
    config_of,
    dataset_id_of,
    name_of,
    path_of,
    text_of,
    truth_of,
    user_id_of,
    whole_number_of,
    wrong,
)
from fluxsmith._async._connection import Connection
from fluxsmith._async._runtime import EncoderStub, TrainerStub, in_thread, sleep
from fluxsmith._async.datasets import AsyncDatasets
from fluxsmith._async.jobs import AsyncJobHandle
from fluxsmith._names import require_known
from fluxsmith._outage import Outage
from fluxsmith._settings import check_token, resolve_settings
from fluxsmith._wire_capabilities import read_capabilities
from fluxsmith._wire_config import write_config
from fluxsmith._wire_jobs import read_job
from fluxsmith._wire_memory import read_estimate, write_model
from fluxsmith.capabilities import Capabilities
from fluxsmith.data import Dataset
from fluxsmith.errors import Unavailable
from fluxsmith.keywords import TrainKeywords
from fluxsmith.memory import EstimatedModel, MemoryEstimate
from fluxsmith.policies import Deadlines, RetryPolicy
from fluxsmith.training import TrainConfig
from fluxsmith.v1 import encoder_pb2, trainer_pb2

_PRIORITIES = "a whole number from -100 to 100"


class AsyncClient:
    """Both services, as one tenant; a context manager.

    What is not given comes from FLUXSMITH_ENCODER, FLUXSMITH_TRAINER and FLUXSMITH_TENANT, or is 127.0.0.1:7401,
    127.0.0.1:7402 and `default`. Addresses are `host:port`; nothing is sent before the first call.
    `token` goes with every call as `authorization: Bearer`.
    `deadlines` bound calls; `retry` says how uploads, downloads and watches go on while a service is away; an upload
    goes in `upload_streams` streams side by side, 1 to 16. Every method may raise `FluxsmithError`.
    """

    def __init__(
        self,
        encoder: str | None = None,
        trainer: str | None = None,
        tenant: str | None = None,
        *,
        token: str | None = None,
        deadlines: Deadlines | None = None,
        retry: RetryPolicy | None = None,
        upload_streams: int = 4,
    ) -> None:
        settings = resolve_settings(encoder=encoder, trainer=trainer, tenant=tenant)
        check_token(token)
        self._deadlines = deadlines or Deadlines()
        self._retry = retry or RetryPolicy()
        self._encoder = Connection(
            EncoderStub,
            service="encoder",
            address=settings.encoder,
            tenant=settings.tenant,
            token=token,
            deadlines=self._deadlines,
            retry=self._retry,
        )
        self._trainer = Connection(
            TrainerStub,
            service="trainer",
            address=settings.trainer,
            tenant=settings.tenant,
            token=token,
            deadlines=self._deadlines,
            retry=self._retry,
        )
        self.datasets = AsyncDatasets(self._encoder, upload_streams=upload_streams)

    async def train(
        self,
        dataset: Dataset | str,
        *,
        held_out: Dataset | str | None = None,
        user_id: str | int = "",
        name: str = "",
        start_while_encoding: bool = False,
        priority: int = 0,
        **config: Unpack[TrainKeywords],
    ) -> AsyncJobHandle:
        """Queue a training job on a READY dataset and return at once.

        Without `steps` or `epochs` it trains one epoch, which is short for a small dataset: give `steps`.
        `held_out` is a dataset to measure the loss on; `user_id` the user of your product that the job is for, as text
        or as a number, which becomes its digits.
        `start_while_encoding` begins on the samples that are done while others are still being encoded. The first
        epoch then follows the order of encoding instead of a shuffled one, so the result depends on the data and the
        seed alone, not on how fast the encoder is. Length must be given in `steps`; should the encoding fail, so does
        the job. `priority`, -100 to 100, says which of the tenant's waiting jobs go first: the highest. All other
        keywords are the fields of `TrainConfig` and described there.

        Raises `InvalidRequest` with every violation at once, `FailedPrecondition` while a dataset is not READY (the one
        to train on may be ENCODING with `start_while_encoding`), and `QuotaExceeded` when the user or the tenant has as
        many unfinished jobs as the trainer allows. A keyword that does not exist is a `TypeError`.
        """
        require_known(config, TrainKeywords, call="Client.train")
        return await self.submit(
            dataset,
            TrainConfig(**config),
            held_out=held_out,
            user_id=user_id,
            name=name,
            start_while_encoding=start_while_encoding,
            priority=priority,
        )

    async def submit(
        self,
        dataset: Dataset | str,
        config: TrainConfig,
        *,
        held_out: Dataset | str | None = None,
        user_id: str | int = "",
        name: str = "",
        start_while_encoding: bool = False,
        priority: int = 0,
        request_id: str | None = None,
    ) -> AsyncJobHandle:
        """Queue a training job as `train` does, from a configuration kept as one value.

        The same `request_id`, up to 64 characters, makes one job however often it is submitted; `AlreadyExists` if all
        else is not the same too. None means a new one.
        """
        request = trainer_pb2.CreateTrainingJobRequest(
            request_id=text_of(request_id or str(uuid4()), "request_id"),
            user_id=user_id_of(user_id),
            display_name=name_of(name),
            dataset_id=dataset_id_of(dataset),
            held_out_dataset_id=dataset_id_of(held_out, "held_out") if held_out is not None else "",
            config=write_config(config_of(config)),
            start_while_encoding=truth_of(start_while_encoding, "start_while_encoding"),
            priority=whole_number_of(priority, "priority", wanted=_PRIORITIES),
        )
        return self._handle((await self._trainer.call(self._trainer.stub.CreateTrainingJob, request)).job)

    async def validate(
        self,
        config: TrainConfig,
        *,
        held_out: bool = False,
        user_id: str | int = "",
        name: str = "",
        start_while_encoding: bool = False,
        priority: int = 0,
    ) -> None:
        """Ask the trainer what is wrong with a job to be, before any data is uploaded; nothing is queued.

        `held_out` says that there will be a dataset to measure on. Raises `InvalidRequest` with every violation at
        once.
        """
        request = trainer_pb2.CreateTrainingJobRequest(
            request_id=str(uuid4()),
            user_id=user_id_of(user_id),
            display_name=name_of(name),
            config=write_config(config_of(config)),
            start_while_encoding=truth_of(start_while_encoding, "start_while_encoding"),
            priority=whole_number_of(priority, "priority", wanted=_PRIORITIES),
            validate_only=True,
            held_out_to_come=truth_of(held_out, "held_out"),
        )
        await self._trainer.call(self._trainer.stub.CreateTrainingJob, request)

    async def job(self, job_id: str) -> AsyncJobHandle:
        """Return a hold on the job, or raise `NotFound`."""
        request = trainer_pb2.GetTrainingJobRequest(job_id=text_of(job_id, "job_id"))
        return self._handle((await self._trainer.call(self._trainer.stub.GetTrainingJob, request)).job)

    async def delete_job(self, job_id: str) -> None:
        """Remove an ended job as `JobHandle.delete` does, without asking for it first; again changes nothing.

        Raises `NotFound` for a job that never was, and `FailedPrecondition` while it has not ended.
        """
        request = trainer_pb2.DeleteTrainingJobRequest(job_id=text_of(job_id, "job_id"), request_id=str(uuid4()))
        await self._trainer.call(self._trainer.stub.DeleteTrainingJob, request)

    async def jobs(self, *, user_id: str | int | None = None) -> AsyncGenerator[AsyncJobHandle]:
        """Yield every job, newest first, page by page; only those for `user_id` if given.

        Their results are without `artifacts`.
        """
        if user_id == "":  # a product's variable that is not set must not show everybody's
            raise wrong("user_id", user_id, "the identifier of a user, or None for all jobs")
        wanted = "" if user_id is None else user_id_of(user_id)
        page_token = ""
        while True:
            request = trainer_pb2.ListTrainingJobsRequest(page_token=page_token, user_id=wanted)
            page = await self._trainer.call(self._trainer.stub.ListTrainingJobs, request)
            for job in page.jobs:
                yield self._handle(job)
            page_token = page.next_page_token
            if not page_token:
                return

    async def upload_adapter(self, path: str | PathLike[str]) -> str:
        """Store a LoRA file, such as one from another trainer, and return its address for `warm_start_uri`.

        Raises `InvalidRequest` for a file that cannot be read or is not a safetensors file, and `UploadFailed` if the
        object store does not take it.
        """
        source = path_of(path)
        await in_thread(check_adapter, source)
        request = trainer_pb2.CreateAdapterUploadRequest(content_digest=await in_thread(digest_of, source))
        outage = Outage(self._retry)
        while True:
            answer = await self._trainer.call(self._trainer.stub.CreateAdapterUpload, request)
            try:
                await in_thread(put_file, answer.url, source, stall_s=self._deadlines.stall_s)
                return answer.uri
            except Unavailable as error:
                await sleep(outage.next_delay_s(error))

    async def estimate_memory(
        self,
        config: TrainConfig | None = None,
        *,
        resolution_px: int = 1024,
        model: EstimatedModel = EstimatedModel.LOADED,
    ) -> MemoryEstimate:
        """Ask how much GPU memory a configuration would need at its peak, part by part; nothing is queued.

        Without `config` it is asked of `TrainConfig()`, the trainer's defaults. `resolution_px` is the side of the
        square whose area no image exceeds, a multiple of 16, 64 to 4096. `model` is the trainer's own unless it is
        FLUX_1_DEV, to plan a GPU before there is one. Raises `InvalidRequest` with every violation at once.
        """
        request = trainer_pb2.EstimateMemoryRequest(
            config=write_config(TrainConfig() if config is None else config_of(config)),
            resolution_px=whole_number_of(resolution_px, "resolution_px", wanted="a multiple of 16 from 64 to 4096"),
            model=write_model(model),
        )
        return read_estimate(await self._trainer.call(self._trainer.stub.EstimateMemory, request))

    async def capabilities(self) -> Capabilities:
        """Return what both services hold and accept; raises `Unavailable` unless both answer."""
        encoder, trainer = self._encoder, self._trainer
        return read_capabilities(
            await encoder.call(encoder.stub.GetCapabilities, encoder_pb2.EncoderServiceGetCapabilitiesRequest()),
            await trainer.call(trainer.stub.GetCapabilities, trainer_pb2.TrainerServiceGetCapabilitiesRequest()),
        )

    async def check_services(self) -> None:
        """Raise `Unavailable` unless both services answer: cheaper to know before an upload than after it."""
        await self.capabilities()

    async def close(self) -> None:
        """Close the connections. Jobs and encodings go on without the client."""
        await self._encoder.close()
        await self._trainer.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _handle(self, message: trainer_pb2.TrainingJob) -> AsyncJobHandle:
        return AsyncJobHandle(self._trainer, read_job(message))
