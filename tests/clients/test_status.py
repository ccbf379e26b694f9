"""From gRPC statuses to errors: the kind, the reason and the remedy survive; the transport's own failures are named."""

from typing import Any

import grpc
import pytest
from fluxsmith import errors
from fluxsmith._status import to_error
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, QuotaFailure, RetryInfo
from google.rpc.status_pb2 import Status


class FailedCall(grpc.RpcError):
    """A call as gRPC hands it to the caller when it has failed."""

    def __init__(self, code: grpc.StatusCode, text: str, *details: Message) -> None:
        super().__init__(text)
        self._code = code
        self._text = text
        packed = []
        for detail in details:
            packed.append(AnyMessage())
            packed[-1].Pack(detail)
        self._status = Status(code=code.value[0], message=text, details=packed)

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._text

    def trailing_metadata(self) -> Any:
        return (("grpc-status-details-bin", self._status.SerializeToString()),)


def translate(failure: grpc.RpcError) -> errors.FluxsmithError:
    return to_error(failure, service="trainer", address="127.0.0.1:7402")


def info(remedy: str = "Do this.") -> ErrorInfo:
    return ErrorInfo(reason="SOME_REASON", domain="fluxsmith", metadata={"remedy": remedy})


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidRequest),
        (grpc.StatusCode.NOT_FOUND, errors.NotFound),
        (grpc.StatusCode.ALREADY_EXISTS, errors.AlreadyExists),
        (grpc.StatusCode.FAILED_PRECONDITION, errors.FailedPrecondition),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.LimitExceeded),
        (grpc.StatusCode.UNAVAILABLE, errors.Unavailable),
        (grpc.StatusCode.UNIMPLEMENTED, errors.Unimplemented),
        (grpc.StatusCode.UNAUTHENTICATED, errors.PermissionDenied),
        (grpc.StatusCode.INTERNAL, errors.InternalError),
        (grpc.StatusCode.DATA_LOSS, errors.InternalError),
    ],
)
def test_status_becomes_its_error_with_reason_and_remedy(
    code: grpc.StatusCode, kind: type[errors.FluxsmithError]
) -> None:
    error = translate(FailedCall(code, "it went wrong", info()))
    assert type(error) is kind
    assert (error.message, error.reason, error.remedy) == ("it went wrong", "SOME_REASON", "Do this.")
    assert str(error) == "it went wrong. Do this."


def test_all_field_violations_are_told_once() -> None:
    violations = [
        BadRequest.FieldViolation(field="config.rank", description="is 0"),
        BadRequest.FieldViolation(field="config.alpha", description="is -1"),
    ]
    details = (info(remedy=""), BadRequest(field_violations=violations))
    error = translate(FailedCall(grpc.StatusCode.INVALID_ARGUMENT, "config.rank is 0", *details))
    assert isinstance(error, errors.InvalidRequest)
    assert [violation.field for violation in error.violations] == ["config.rank", "config.alpha"]
    assert str(error) == "config.rank is 0. config.alpha: is -1."


def test_quota_is_told_with_whose_it_is() -> None:
    quota = QuotaFailure(violations=[QuotaFailure.Violation(subject="user:ada", description="3 of 3")])
    error = translate(FailedCall(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many jobs", info(), quota))
    assert isinstance(error, errors.QuotaExceeded)
    assert (error.reason, error.subject, error.remedy) == ("SOME_REASON", "user:ada", "Do this.")


def test_wait_that_the_service_asks_for_is_kept() -> None:
    retry = RetryInfo()
    retry.retry_delay.FromMilliseconds(2500)
    error = translate(FailedCall(grpc.StatusCode.UNAVAILABLE, "the store is down", info(), retry))
    assert isinstance(error, errors.Unavailable)
    assert error.retry_after_s == 2.5


def test_limit_that_passes_is_worth_another_try() -> None:
    error = translate(FailedCall(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full", info(), RetryInfo()))
    assert isinstance(error, errors.Unavailable)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses"),
        (grpc.StatusCode.CANCELLED, "CANCELLED"),
        (grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2"),
        (grpc.StatusCode.UNKNOWN, "Stream removed"),
    ],
)
def test_lost_service_is_named_with_its_address_and_how_to_start_it(code: grpc.StatusCode, text: str) -> None:
    error = translate(FailedCall(code, text))
    assert isinstance(error, errors.Unavailable)
    assert "trainer at 127.0.0.1:7402" in error.message
    assert "fluxsmith up" in error.remedy
    assert "FLUXSMITH_TRAINER" in error.remedy


def test_late_answer_is_a_deadline() -> None:
    error = translate(FailedCall(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"))
    assert isinstance(error, errors.DeadlineExceeded)
    assert "did not answer in time" in error.message


def test_message_over_the_limit_is_not_tried_again() -> None:
    error = translate(FailedCall(grpc.StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max"))
    assert not isinstance(error, errors.Unavailable)


def test_details_of_another_domain_are_not_taken_for_ours() -> None:
    foreign = ErrorInfo(reason="THEIRS", domain="proxy.example", metadata={"remedy": "Pay."})
    error = translate(FailedCall(grpc.StatusCode.NOT_FOUND, "no route", foreign))
    assert error.reason == "NOT_FOUND"
    assert error.remedy == "Try again; if it stays so, read the trainer's log."


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INTERNAL])
def test_wait_that_the_service_asks_for_is_told_with_every_error(code: grpc.StatusCode) -> None:
    delay = RetryInfo()
    delay.retry_delay.FromMilliseconds(2500)
    assert translate(FailedCall(code, "later", info(), delay)).retry_after_s == 2.5
    assert translate(FailedCall(code, "never", info())).retry_after_s is None


def test_quota_stays_one_when_there_is_a_time_to_try_again() -> None:
    quota = QuotaFailure(violations=[QuotaFailure.Violation(subject="user:ada")])
    error = translate(FailedCall(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", info(), quota, RetryInfo()))
    assert isinstance(error, errors.QuotaExceeded)
    assert (error.subject, error.retry_after_s) == ("user:ada", 0.0)
