"""An encoder and a trainer that keep what they were asked and answer by the contract at once, and a store beside them.

They stand where a test is about what the client sends; tests/integration has the services themselves.
"""

import hashlib
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

import grpc
from fluxsmith.v1 import encoder_pb2 as encoder
from fluxsmith.v1 import trainer_pb2 as trainer
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

_Kind = TypeVar("_Kind", bound=Message)

CONTENT = b"a picture or a LoRA"
_WITHOUT_LORA = {trainer.TRAINING_JOB_STATE_FAILED, trainer.TRAINING_JOB_STATE_CANCELLED}
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Refused(Exception):
    """What a request is answered with that is wrong, by its message, and by its reason as the services give it."""

    def __init__(self, message: str, *, code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT, reason: str = ""):
        super().__init__(message)
        self.code = code
        self.reason = reason


class Recorder:
    """Both services: `requests` in order, with one dataset `d` and one job `j` that has succeeded."""

    def __init__(self, store_url: str) -> None:
        self.address = ""
        self.store_url = store_url
        self.requests: list[Message] = []
        self.metadata: list[dict[str, str | bytes]] = []
        self.sheet_pages = 1
        self.encoded = encoder.Dataset(dataset_id="d", state=encoder.DATASET_STATE_READY)
        self.encoding = encoder.Dataset(dataset_id="d", state=encoder.DATASET_STATE_ENCODING)
        self.job = trainer.TrainingJob(job_id="j", state=trainer.TRAINING_JOB_STATE_SUCCEEDED)
        self.events: list[trainer.TrainingEvent] = []
        self.checkpoints: list[trainer.Checkpoint] = []
        self.removed_steps: list[int] = []
        self.estimate = trainer.EstimateMemoryResponse()
        self.deleted = False
        self.refusals: dict[type[Message], grpc.StatusCode] = {}
        self.refusal = ""  # of the configuration, when asked to validate it

    def asked(self, kind: type[_Kind]) -> list[_Kind]:
        """The requests of one kind."""
        return [request for request in self.requests if isinstance(request, kind)]

    def queued(self) -> list[trainer.CreateTrainingJobRequest]:
        """The requests for jobs, not those that only ask whether they are right."""
        return [request for request in self.asked(trainer.CreateTrainingJobRequest) if not request.validate_only]

    def validated(self) -> list[trainer.CreateTrainingJobRequest]:
        """The requests that only ask whether they are right."""
        return [request for request in self.asked(trainer.CreateTrainingJobRequest) if request.validate_only]

    def names(self) -> list[str]:
        """What was asked; probing for the services does not count."""
        names = [type(request).__name__.removesuffix("Request") for request in self.requests]
        return [name for name in names if not name.endswith("GetCapabilities")]

    def answer(self, request: Message) -> Iterable[Message]:
        """Keep the request and yield what is answered to it."""
        self.requests.append(request)
        if type(request) in self.refusals:
            raise Refused("as told", code=self.refusals[type(request)])
        yield from self._of_encoder(request)
        yield from self._of_trainer(request)
        yield from self._of_files(request)
        yield from self._of_job(request)

    def _of_encoder(self, request: Message) -> Iterable[Message]:
        match request:
            case encoder.CreateDatasetRequest():
                yield encoder.CreateDatasetResponse(dataset=encoder.Dataset(dataset_id="d"))
            case encoder.EncodeDatasetRequest():
                yield encoder.EncodeDatasetResponse(dataset=self.encoding)
            case encoder.WatchDatasetRequest():
                yield encoder.WatchDatasetResponse(dataset=self.encoding)
                yield encoder.WatchDatasetResponse(dataset=self.encoded)
            case encoder.GetDatasetRequest():
                yield encoder.GetDatasetResponse(dataset=self.encoded)
            case encoder.RenderContactSheetRequest():
                yield self._sheet(int(request.page_token or 1))

    def _of_trainer(self, request: Message) -> Iterable[Message]:
        match request:
            case trainer.EstimateMemoryRequest():
                yield self.estimate
            case trainer.CreateTrainingJobRequest(validate_only=True):
                if self.refusal:
                    raise Refused(self.refusal)
            case trainer.CreateTrainingJobRequest():
                yield trainer.CreateTrainingJobResponse(job=self.job)
            case trainer.GetTrainingJobRequest() if self.deleted or request.job_id != "j":
                raise Refused("there is no such job", code=grpc.StatusCode.NOT_FOUND, reason="JOB_NOT_FOUND")
            case trainer.GetTrainingJobRequest():
                yield trainer.GetTrainingJobResponse(job=self.job)
            case trainer.WatchTrainingJobRequest():
                for event in self.events[request.after_sequence :]:
                    yield trainer.WatchTrainingJobResponse(event=event)

    def _of_files(self, request: Message) -> Iterable[Message]:
        match request:
            case trainer.CreateAdapterUploadRequest():
                yield trainer.CreateAdapterUploadResponse(url=self.store_url, uri="s3://b/adapter")
            case trainer.CreateDownloadUrlRequest() if self.job.state in _WITHOUT_LORA:
                message = f"there is no file {request.artifact_name!r}"
                raise Refused(message, code=grpc.StatusCode.FAILED_PRECONDITION, reason="ARTIFACT_NOT_FOUND")
            case trainer.CreateDownloadUrlRequest():
                file = trainer.ArtifactPublished(size_bytes=len(CONTENT), content_digest=DIGEST)
                yield trainer.CreateDownloadUrlResponse(artifact=file, url=self.store_url)

    def _of_job(self, request: Message) -> Iterable[Message]:
        match request:
            case trainer.ListTrainingJobsRequest():
                listed = trainer.TrainingJob.FromString(self.job.SerializeToString())
                listed.ClearField("queue_position")
                yield trainer.ListTrainingJobsResponse(jobs=[listed])
            case trainer.PauseTrainingJobRequest():
                yield trainer.PauseTrainingJobResponse(job=self.job)
            case trainer.ResumeTrainingJobRequest():
                yield trainer.ResumeTrainingJobResponse(job=self.job)
            case trainer.CancelTrainingJobRequest():
                yield trainer.CancelTrainingJobResponse(job=self.job)
            case trainer.DeleteTrainingJobRequest() if request.job_id != "j":
                raise Refused("there is no such job", code=grpc.StatusCode.NOT_FOUND, reason="JOB_NOT_FOUND")
            case trainer.DeleteTrainingJobRequest():
                self.deleted = True
                yield trainer.DeleteTrainingJobResponse()
            case trainer.CreateCheckpointRequest():
                yield trainer.CreateCheckpointResponse(job=self.job)
            case trainer.ListCheckpointsRequest():
                yield trainer.ListCheckpointsResponse(checkpoints=self.checkpoints, removed_steps=self.removed_steps)

    def happened(self, event: trainer.TrainingEvent) -> None:
        """Let the event be the job's newest."""
        event.sequence = len(self.events) + 1
        self.job.last_sequence = event.sequence
        self.events.append(event)

    def _sheet(self, page: int) -> encoder.RenderContactSheetResponse:
        return encoder.RenderContactSheetResponse(
            image=encoder.ObjectReference(uri="s3://b/k", content_digest=DIGEST, size_bytes=len(CONTENT)),
            download_url=self.store_url,
            next_page_token=str(page + 1) if page < self.sheet_pages else "",
        )


@contextmanager
def serving(recorder: Recorder) -> Iterator[None]:
    """Serve both services on one free port, told as the recorder's `address`."""
    server = grpc.server(ThreadPoolExecutor(2))
    for service in (
        encoder.DESCRIPTOR.services_by_name["EncoderService"],
        trainer.DESCRIPTOR.services_by_name["TrainerService"],
    ):
        server.add_generic_rpc_handlers((_handlers(service, recorder),))
    recorder.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield
    finally:
        server.stop(None).wait()


def _handlers(service: ServiceDescriptor, recorder: Recorder) -> grpc.GenericRpcHandler:
    table = {method.name: _handler(method, recorder) for method in service.methods}
    return grpc.method_handlers_generic_handler(service.full_name, table)


def _handler(method: MethodDescriptor, recorder: Recorder) -> Any:
    """The method: an empty message goes back where the recorder has no answer."""
    request_class, response_class = GetMessageClass(method.input_type), GetMessageClass(method.output_type)

    def respond(request: Any, context: grpc.ServicerContext) -> Any:
        recorder.metadata.append(dict(context.invocation_metadata()))
        parts = list(request) if method.client_streaming else [request]
        try:
            answers = [answered for part in parts for answered in recorder.answer(part)]
        except Refused as refusal:
            _abort(context, refusal)
        return iter(answers) if method.server_streaming else next(iter(answers), response_class())

    kind = f"{_word(method.client_streaming)}_{_word(method.server_streaming)}_rpc_method_handler"
    return getattr(grpc, kind)(
        respond, request_deserializer=request_class.FromString, response_serializer=response_class.SerializeToString
    )


def _abort(context: grpc.ServicerContext, refusal: Refused) -> None:
    if not refusal.reason:
        context.abort(refusal.code, str(refusal))
    status = status_pb2.Status(code=refusal.code.value[0], message=str(refusal))
    status.details.add().Pack(error_details_pb2.ErrorInfo(domain="fluxsmith", reason=refusal.reason))
    context.abort_with_status(rpc_status.to_status(status))


def _word(streaming: bool) -> str:
    return "stream" if streaming else "unary"


@contextmanager
def store() -> Iterator[str]:
    """Serve `CONTENT` under every path, and take whatever is put; the address is given."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _StoreHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/file"
        finally:
            server.shutdown()


class _StoreHandler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT)

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass
