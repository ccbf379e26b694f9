"""No RPC is reached past the gate: each looks at its caller, and takes nothing that is not its message."""

from __future__ import annotations

import io

import grpc
import pytest
from fluxsmith.v1 import encoder_pb2 as pb
from fluxsmith.v1 import encoder_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.stack import Stack
from tests.rpcs import RPCS, Metadata, Rpc, reason_of

GARBAGE = b"\xff\xff"  # a field's number that goes on past the end
REFUSED = grpc.StatusCode.INVALID_ARGUMENT
every_rpc = pytest.mark.parametrize("rpc", RPCS, ids=str)


@pytest.fixture
def log_before(stack: Stack) -> dict[str, int]:
    """How long each log is."""
    return {name: stack.log_path(name).stat().st_size for name in ("encoder", "trainer")}


def address_of(stack: Stack, rpc: Rpc) -> str:
    return stack.encoder_address if rpc.service == "encoder" else stack.trainer_address


def answer(stack: Stack, rpc: Rpc, message: bytes, metadata: Metadata = ()) -> tuple[grpc.StatusCode, str]:
    with grpc.insecure_channel(address_of(stack, rpc)) as channel:
        return reason_of(rpc.call(channel, [message], metadata, timeout_s=30))


def test_there_are_rpcs_of_both_services() -> None:
    assert {rpc.service for rpc in RPCS} == {"encoder", "trainer"}
    assert len(RPCS) >= 25


@every_rpc
def test_every_rpc_refuses_a_tenant_that_cannot_be_one(stack: Stack, rpc: Rpc) -> None:
    assert answer(stack, rpc, b"", [("fluxsmith-tenant", "../../x")]) == (REFUSED, "TENANT_INVALID")


@every_rpc
@pytest.mark.parametrize("name", ["fluxsmith-tenant", "authorization"])
def test_every_rpc_refuses_a_header_that_comes_twice(stack: Stack, rpc: Rpc, name: str) -> None:
    assert answer(stack, rpc, b"", [(name, "mine"), (name, "theirs")]) == (REFUSED, "METADATA_REPEATED")


@every_rpc
def test_every_rpc_refuses_what_is_no_message_and_logs_a_line(
    stack: Stack, rpc: Rpc, log_before: dict[str, int]
) -> None:
    assert answer(stack, rpc, GARBAGE) == (REFUSED, "MESSAGE_UNREADABLE")
    (line,) = logged_since(stack, rpc.service, log_before).splitlines()
    assert f"/{rpc.method.name}: 2 bytes from ipv4:127.0.0.1:" in line
    assert len(line) < 200


def test_garbage_in_the_middle_of_an_upload_ends_it_as_the_callers_fault(
    stack: Stack, log_before: dict[str, int]
) -> None:
    (upload,) = (rpc for rpc in RPCS if rpc.method.name == "UploadSamples")
    with grpc.insecure_channel(stack.encoder_address) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        dataset_id = stub.CreateDataset(pb.CreateDatasetRequest()).dataset.dataset_id
        target = pb.UploadSamplesRequest(target=pb.UploadTarget(dataset_id=dataset_id)).SerializeToString()
        call = upload.call(channel, [target, GARBAGE], (), timeout_s=30)
        assert reason_of(call) == (REFUSED, "MESSAGE_UNREADABLE")
    assert "Traceback" not in logged_since(stack, "encoder", log_before)


def test_health_is_for_everybody(stack: Stack) -> None:
    with grpc.insecure_channel(stack.trainer_address) as channel:
        request = health_pb2.HealthCheckRequest()
        metadata = [("fluxsmith-tenant", "no tenant")]
        answered = health_pb2_grpc.HealthStub(channel).Check(request, metadata=metadata)
    assert answered.status == health_pb2.HealthCheckResponse.SERVING


def logged_since(stack: Stack, service: str, log_before: dict[str, int]) -> str:
    with stack.log_path(service).open("rb") as log:
        log.seek(log_before[service], io.SEEK_SET)
        return log.read().decode()
