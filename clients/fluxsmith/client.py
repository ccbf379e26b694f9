"""The client: one object that holds both services and is closed when done."""

from collections.abc import Iterator
from types import TracebackType
from typing import Self
from uuid import uuid4

from fluxsmith._connection import Connection
from fluxsmith._settings import resolve_settings
from fluxsmith._wire_jobs import read_job, write_config
from fluxsmith.data import Dataset
from fluxsmith.datasets import Datasets
from fluxsmith.jobs import JobHandle
from fluxsmith.training import SigmaSampling, TargetPreset, TrainConfig
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

    def train(  # noqa: PLR0913  # the fields of TrainConfig, spelled out so that editors and checkers know them
        self,
        dataset: Dataset | str,
        *,
        held_out: Dataset | str | None = None,
        user_id: str = "",
        name: str = "",
        start_while_encoding: bool = False,
        rank: int | None = None,
        alpha: float | None = None,
        learning_rate: float | None = None,
        batch_size: int | None = None,
        steps: int | None = None,
        epochs: int | None = None,
        seed: int | None = None,
        sigma_sampling: SigmaSampling | None = None,
        targets: TargetPreset | None = None,
        warmup_steps: int | None = None,
        max_gradient_norm: float | None = None,
        caption_dropout: float | None = None,
        gradient_checkpointing: bool | None = None,
        validation_interval_steps: int | None = None,
    ) -> JobHandle:
        """Queue a training job on a READY dataset and return at once.

        `held_out` is a dataset to measure the loss on; `user_id` the user of your product that the job is for.
        `start_while_encoding` begins on the samples that are done while others are still being encoded. The first
        epoch then follows the order of encoding instead of a shuffled one, so the result depends on the data and the
        seed alone, not on how fast the encoder is. Length must be given in `steps`; should the encoding fail, so does
        the job. All else is described in `TrainConfig`.

        Raises `InvalidRequest` with every violation at once, and `FailedPrecondition` while a dataset is not READY; the
        one to train on may be ENCODING with `start_while_encoding`.
        """
        config = TrainConfig(
            rank=rank,
            alpha=alpha,
            learning_rate=learning_rate,
            batch_size=batch_size,
            steps=steps,
            epochs=epochs,
            seed=seed,
            sigma_sampling=sigma_sampling,
            targets=targets,
            warmup_steps=warmup_steps,
            max_gradient_norm=max_gradient_norm,
            caption_dropout=caption_dropout,
            gradient_checkpointing=gradient_checkpointing,
            validation_interval_steps=validation_interval_steps,
        )
        return self.submit(
            dataset,
            config,
            held_out=held_out,
            user_id=user_id,
            name=name,
            start_while_encoding=start_while_encoding,
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
        )
        return self._handle(self._trainer.call(self._trainer_stub.CreateTrainingJob, request).job)

    def job(self, job_id: str) -> JobHandle:
        """Return a hold on the job, or raise `NotFound`."""
        request = trainer_pb2.GetTrainingJobRequest(job_id=job_id)
        return self._handle(self._trainer.call(self._trainer_stub.GetTrainingJob, request).job)

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
