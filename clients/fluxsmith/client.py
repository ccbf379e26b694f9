"""The client: one object that holds both services and is closed when done."""

from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack
from uuid import uuid4

from fluxsmith._adapter_upload import check_adapter, digest_of, put_file
from fluxsmith._connection import Connection
from fluxsmith._names import suggestion
from fluxsmith._settings import resolve_settings
from fluxsmith._wire_config import write_config
from fluxsmith._wire_jobs import read_job
from fluxsmith.data import Dataset
from fluxsmith.datasets import Datasets
from fluxsmith.errors import FieldViolation, InvalidRequest
from fluxsmith.jobs import JobHandle
from fluxsmith.keywords import TrainKeywords
from fluxsmith.training import TrainConfig
from fluxsmith.v1 import encoder_pb2, trainer_pb2
from fluxsmith.v1.encoder_pb2_grpc import EncoderServiceStub
from fluxsmith.v1.trainer_pb2_grpc import TrainerServiceStub


class Client:
    """Both services, as one tenant; a context manager.

    What is not given comes from FLUXSMITH_ENCODER, FLUXSMITH_TRAINER and FLUXSMITH_TENANT, or is 127.0.0.1:7401,
    127.0.0.1:7402 and `default`. Addresses are `host:port`; nothing is sent before the first call.
    `deadline_s` bounds every call that is answered at once; `outage_s` is how long uploads and watches keep trying
    while a service is away. Every method may raise `FluxsmithError`.
    """

    def __init__(
        self,
        encoder: str | None = None,
        trainer: str | None = None,
        tenant: str | None = None,
        *,
        deadline_s: float = 30.0,
        outage_s: float = 120.0,
    ) -> None:
        settings = resolve_settings(encoder=encoder, trainer=trainer, tenant=tenant)
        self._encoder = Connection(
            service="encoder", address=settings.encoder, tenant=settings.tenant, deadline_s=deadline_s
        )
        self._trainer = Connection(
            service="trainer", address=settings.trainer, tenant=settings.tenant, deadline_s=deadline_s
        )
        self._encoder_stub = EncoderServiceStub(self._encoder.channel)
        self._trainer_stub = TrainerServiceStub(self._trainer.channel)
        self._outage_s = outage_s
        self.datasets = Datasets(self._encoder, outage_s=outage_s)

    def train(
        self,
        dataset: Dataset | str,
        *,
        held_out: Dataset | str | None = None,
        user_id: str = "",
        name: str = "",
        start_while_encoding: bool = False,
        priority: int = 0,
        **config: Unpack[TrainKeywords],
    ) -> JobHandle:
        """Queue a training job on a READY dataset and return at once.

        `held_out` is a dataset to measure the loss on; `user_id` the user of your product that the job is for.
        `start_while_encoding` begins on the samples that are done while others are still being encoded. The first
        epoch then follows the order of encoding instead of a shuffled one, so the result depends on the data and the
        seed alone, not on how fast the encoder is. Length must be given in `steps`; should the encoding fail, so does
        the job. `priority`, -100 to 100, says which of the tenant's waiting jobs go first: the highest. All other
        keywords are the fields of `TrainConfig` and described there.

        Raises `InvalidRequest` with every violation at once, `FailedPrecondition` while a dataset is not READY (the one
        to train on may be ENCODING with `start_while_encoding`), and `QuotaExceeded` when the user or the tenant has as
        many unfinished jobs as the trainer allows. A keyword that does not exist is a `TypeError`.
        """
        known = set(TrainKeywords.__annotations__)
        if unknown := sorted(set(config) - known):
            problem = f"unexpected keyword argument {unknown[0]!r}{suggestion(unknown[0], known)}"
            raise TypeError(f"Client.train() got an {problem}")
        return self.submit(
            dataset,
            TrainConfig(**config),
            held_out=held_out,
            user_id=user_id,
            name=name,
            start_while_encoding=start_while_encoding,
            priority=priority,
        )

    def submit(
        self,
        dataset: Dataset | str,
        config: TrainConfig,
        *,
        held_out: Dataset | str | None = None,
        user_id: str = "",
        name: str = "",
        start_while_encoding: bool = False,
        priority: int = 0,
    ) -> JobHandle:
        """Queue a training job as `train` does, from a configuration kept as one value."""
        request = trainer_pb2.CreateTrainingJobRequest(
            request_id=str(uuid4()),
            user_id=user_id,
            display_name=name,
            dataset_id=_id_of(dataset),
            held_out_dataset_id=_id_of(held_out) if held_out is not None else "",
            config=write_config(config),
            start_while_encoding=start_while_encoding,
            priority=_sendable(priority),
        )
        return self._handle(self._trainer.call(self._trainer_stub.CreateTrainingJob, request).job)

    def validate(
        self, config: TrainConfig, *, held_out: bool = False, start_while_encoding: bool = False, priority: int = 0
    ) -> None:
        """Ask the trainer what is wrong with a configuration, before any data is uploaded; nothing is queued.

        `held_out` says that there will be a dataset to measure on. Raises `InvalidRequest` with every violation at
        once.
        """
        request = trainer_pb2.CreateTrainingJobRequest(
            request_id=str(uuid4()),
            config=write_config(config),
            start_while_encoding=start_while_encoding,
            priority=_sendable(priority),
            validate_only=True,
            held_out_to_come=held_out,
        )
        self._trainer.call(self._trainer_stub.CreateTrainingJob, request)

    def job(self, job_id: str) -> JobHandle:
        """Return a hold on the job, or raise `NotFound`."""
        request = trainer_pb2.GetTrainingJobRequest(job_id=job_id)
        return self._handle(self._trainer.call(self._trainer_stub.GetTrainingJob, request).job)

    def delete_job(self, job_id: str) -> None:
        """Remove an ended job as `JobHandle.delete` does, without asking for it first; again changes nothing.

        Raises `NotFound` for a job that never was, and `FailedPrecondition` while it has not ended.
        """
        request = trainer_pb2.DeleteTrainingJobRequest(job_id=job_id, request_id=str(uuid4()))
        self._trainer.call(self._trainer_stub.DeleteTrainingJob, request)

    def jobs(self, *, user_id: str | None = None) -> Iterator[JobHandle]:
        """Yield every job, newest first, page by page; only those for `user_id` if given."""
        page_token = ""
        while True:
            request = trainer_pb2.ListTrainingJobsRequest(page_token=page_token, user_id=user_id or "")
            page = self._trainer.call(self._trainer_stub.ListTrainingJobs, request)
            yield from (self._handle(job) for job in page.jobs)
            page_token = page.next_page_token
            if not page_token:
                return

    def upload_adapter(self, path: str | PathLike[str]) -> str:
        """Store a LoRA file, such as one from another trainer, and return its address for `warm_start_uri`.

        Raises `InvalidRequest` for a file that cannot be read or is no safetensors file, and `UploadFailed` if the
        object store does not take it.
        """
        source = Path(path)
        check_adapter(source)
        request = trainer_pb2.CreateAdapterUploadRequest(content_digest=digest_of(source))
        answer = self._trainer.call(self._trainer_stub.CreateAdapterUpload, request)
        put_file(answer.url, source)
        return answer.uri

    def check_services(self) -> None:
        """Raise `Unavailable` unless both services answer: cheaper to know before an upload than after it."""
        self._encoder.call(self._encoder_stub.GetCapabilities, encoder_pb2.EncoderServiceGetCapabilitiesRequest())
        self._trainer.call(self._trainer_stub.GetCapabilities, trainer_pb2.TrainerServiceGetCapabilitiesRequest())

    def close(self) -> None:
        """Close the connections. Jobs and encodings go on without the client."""
        self._encoder.close()
        self._trainer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _handle(self, message: trainer_pb2.TrainingJob) -> JobHandle:
        return JobHandle(self._trainer, read_job(message), outage_s=self._outage_s)


def _id_of(dataset: Dataset | str) -> str:
    return dataset if isinstance(dataset, str) else dataset.id


def _sendable(priority: int) -> int:
    """Return the priority if it can travel at all; whether it is in range is the trainer's to say."""
    if type(priority) is int and abs(priority) < 2**31:
        return priority
    fault = FieldViolation(field="priority", description=f"is {priority!r}, no whole number from -100 to 100")
    raise InvalidRequest(f"the priority {fault.description}.", reason="FIELD_INVALID", violations=(fault,))
