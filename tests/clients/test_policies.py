"""Deadlines and retries: values with ranges, which calls keep to."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from fluxsmith import CaptionedImage, Client, Deadlines, RetryPolicy, errors
from fluxsmith._channel import channel_options
from fluxsmith.v1 import encoder_pb2, encoder_pb2_grpc


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (Deadlines, {"call_s": 0}),
        (Deadlines, {"render_s": 3601}),
        (Deadlines, {"stall_s": -1}),
        (RetryPolicy, {"attempts": 0}),
        (RetryPolicy, {"attempts": 6}),
        (RetryPolicy, {"outage_s": -1}),
        (RetryPolicy, {"first_delay_s": 0}),
        (RetryPolicy, {"first_delay_s": 10}),  # over the longest
        (RetryPolicy, {"longest_delay_s": 301}),
    ],
)
def test_value_out_of_range_is_refused_with_its_range(kind: Any, given: dict[str, float]) -> None:
    with pytest.raises(errors.InvalidRequest, match=r"cannot be .*Use ") as caught:
        kind(**given)
    assert caught.value.reason == "FIELD_INVALID"


@pytest.mark.parametrize("attempts", [1, 2, 5])
def test_grpc_is_told_how_often_to_try(attempts: int) -> None:
    options = dict(channel_options("127.0.0.1:1", RetryPolicy(attempts=attempts)))
    of_all, of_streams = json.loads(str(options["grpc.service_config"]))["methodConfig"]
    assert of_all.get("retryPolicy", {}).get("maxAttempts", 1) == attempts
    assert {name["method"] for name in of_streams.pop("name")} == {"WatchDataset", "WatchTrainingJob"}
    assert not of_streams


DIES_WHEN_WATCHED = """
import grpc, os
from concurrent.futures import ThreadPoolExecutor
from fluxsmith.v1 import trainer_pb2, trainer_pb2_grpc

class Trainer(trainer_pb2_grpc.TrainerServiceServicer):
    def GetTrainingJob(self, request, context):
        return trainer_pb2.GetTrainingJobResponse(job={"job_id": "j", "state": "TRAINING_JOB_STATE_RUNNING"})

    def WatchTrainingJob(self, request, context):
        os._exit(0)

server = grpc.server(ThreadPoolExecutor(2))
trainer_pb2_grpc.add_TrainerServiceServicer_to_server(Trainer(), server)
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
server.wait_for_termination()
"""


def test_server_that_is_killed_before_the_first_event_is_noticed() -> None:
    caught: list[Exception] = []

    def wait(address: str) -> None:
        with Client(address, address, retry=RetryPolicy(outage_s=0.5)) as client:
            try:
                client.job("j").wait()
            except Exception as error:  # noqa: BLE001  # looked at below
                caught.append(error)

    with subprocess.Popen([sys.executable, "-c", DIES_WHEN_WATCHED], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        address = f"127.0.0.1:{server.stdout.readline().strip()}"
        waiting = threading.Thread(target=wait, args=(address,), daemon=True)
        waiting.start()
        waiting.join(20)  # it would never end
    assert [type(error) for error in caught] == [errors.Unavailable]


# ruff: noqa: N802  # names of calls are the contract's
class Encoder(encoder_pb2_grpc.EncoderServiceServicer):
    """Away for its first `failures` calls, and slow if `slow_s`; breaks its first upload after two samples."""

    def __init__(self) -> None:
        self.failures = 0
        self.slow_s = 0.0
        self.calls = 0
        self.breaks = 0
        self.lock = threading.Lock()
        self.stored: dict[str, encoder_pb2.SampleHeader] = {}
        self.sent: list[str] = []

    def GetCapabilities(self, _: Any, context: Any) -> encoder_pb2.EncoderServiceGetCapabilitiesResponse:
        self.calls += 1
        time.sleep(self.slow_s)
        if self.calls <= self.failures:
            context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        return encoder_pb2.EncoderServiceGetCapabilitiesResponse()

    def GetDataset(self, _: Any, __: Any) -> encoder_pb2.GetDatasetResponse:
        samples = [
            encoder_pb2.Sample(
                sample_name=header.sample_name,
                captions=header.captions,
                content_digest=header.content_digest,
                repeats=header.repeats,
            )
            for header in self.stored.values()
        ]
        return encoder_pb2.GetDatasetResponse(samples=samples)

    def UploadSamples(self, requests: Any, context: Any) -> encoder_pb2.UploadSamplesResponse:
        for message in requests:
            if not message.HasField("sample"):
                continue
            with self.lock:
                self.sent.append(message.sample.sample_name)
                if len(self.sent) > 2 and self.breaks:
                    self.breaks -= 1
                    context.abort(grpc.StatusCode.UNAVAILABLE, "broken")
                self.stored[message.sample.sample_name] = message.sample
        return encoder_pb2.UploadSamplesResponse()


@pytest.fixture
def encoder() -> Encoder:
    return Encoder()  # type: ignore[abstract]  # the other calls are not made


@pytest.fixture
def address(encoder: Encoder) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(8))
    encoder_pb2_grpc.add_EncoderServiceServicer_to_server(encoder, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.mark.parametrize("attempts", [1, 3])
def test_call_is_sent_as_often_as_the_policy_says(address: str, encoder: Encoder, attempts: int) -> None:
    encoder.failures = 10
    retry = RetryPolicy(attempts=attempts, first_delay_s=0.01)
    with Client(address, address, retry=retry) as client, pytest.raises(errors.Unavailable):
        client.check_services()
    assert encoder.calls == attempts


def test_call_that_takes_longer_than_its_deadline_ends(address: str, encoder: Encoder) -> None:
    encoder.slow_s = 1
    client = Client(address, address, deadlines=Deadlines(call_s=0.1))
    with client, pytest.raises(errors.DeadlineExceeded) as caught:
        client.check_services()
    assert caught.value.reason == "DEADLINE_EXCEEDED"


@pytest.mark.parametrize("streams", [1, 4])
def test_broken_upload_sends_again_only_what_did_not_arrive(address: str, encoder: Encoder, streams: int) -> None:
    encoder.breaks = 1
    images = [CaptionedImage(content=bytes([number]), captions=("a",), name=f"{number}") for number in range(12)]
    retry = RetryPolicy(attempts=1, first_delay_s=0.01)  # gRPC itself would repeat what it still holds
    with Client(address, address, upload_streams=streams, retry=retry) as client:
        client.datasets.upload("d", images)
    assert set(encoder.stored) == {image.name for image in images}
    assert len(encoder.sent) == len(images) + 1  # the one that was on its way at the break
