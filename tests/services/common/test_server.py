"""Errors at the edge: each of the domain has a status, and carries its reason and remedy."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2

from services.common import errors
from services.common.base_check import BaseModelError
from services.common.errors import FieldViolation, InvalidInput, QuotaExceeded, ServiceError, Unavailable
from services.common.object_store import ObjectDamaged, ObjectMissing
from services.common.server import DOMAIN, MAX_MESSAGE_BYTES, STATUS_OF, _details, cut, fitting


def status_of(error: ServiceError) -> grpc.StatusCode:
    """The status that a caller sees."""
    return next(code for kind, code in STATUS_OF.items() if isinstance(error, kind))


@pytest.mark.parametrize("kind", ServiceError.__subclasses__())
def test_every_kind_of_error_in_errors_py_has_a_status_of_its_own(kind: type[ServiceError]) -> None:
    if kind.__module__ == errors.__name__:
        assert STATUS_OF[kind] is not grpc.StatusCode.INTERNAL
    assert list(STATUS_OF)[-1] is ServiceError  # the catch-all comes last, or it would hide the others


@pytest.mark.parametrize("error", [ObjectMissing("k"), ObjectDamaged("k"), BaseModelError("m", "r")])
def test_lost_data_is_never_internal(error: ServiceError) -> None:
    assert status_of(error) is grpc.StatusCode.DATA_LOSS


def test_reason_and_remedy_travel_as_error_info() -> None:
    info = error_details_pb2.ErrorInfo()
    assert _details(ObjectMissing("a/b"))[0].Unpack(info)
    assert (info.reason, info.domain) == ("OBJECT_MISSING", DOMAIN)
    assert info.metadata["remedy"] == ObjectMissing("a/b").remedy


def test_all_field_violations_travel_together() -> None:
    violations = tuple(FieldViolation(field=name, description="is wrong") for name in ("config.rank", "config.alpha"))
    packed = _details(InvalidInput("m", reason="R", remedy="r", violations=violations))
    request = error_details_pb2.BadRequest()
    assert packed[1].Unpack(request)
    assert [violation.field for violation in request.field_violations] == ["config.rank", "config.alpha"]


def test_quota_says_whose_it_is() -> None:
    error = QuotaExceeded("3 of 3 jobs", reason="USER_QUOTA", remedy="r", subject="user:ada")
    quota = error_details_pb2.QuotaFailure()
    assert _details(error)[1].Unpack(quota)
    assert [(one.subject, one.description) for one in quota.violations] == [("user:ada", "3 of 3 jobs")]
    assert status_of(error) is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_unavailable_says_when_to_try_again() -> None:
    packed = _details(Unavailable("m", reason="R", remedy="r", retry_after_s=1.5))
    retry = error_details_pb2.RetryInfo()
    assert packed[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 1500


def test_one_line_says_what_happened_and_what_to_do() -> None:
    line = ObjectDamaged("a/b").line
    assert "a/b" in line
    assert line.endswith(ObjectDamaged("a/b").remedy)
    assert "\n" not in line


def test_message_limit_leaves_room_for_a_full_page() -> None:
    assert MAX_MESSAGE_BYTES == 8 * 1024 * 1024


def test_faults_of_any_length_fit_into_an_answer() -> None:
    long = [errors.FieldViolation(field=f"config.f{number}", description="\U0001f34e" * 1000) for number in range(50)]
    told = list(fitting(long))
    assert sum(len((one.field + one.description).encode()) for one in told) < 2500
    assert told[0].description.endswith("...")
    assert told[-1].description == f"and {50 - len(told) + 1} more"
    short = [errors.FieldViolation(field="a", description="b")] * 3
    assert list(fitting(short)) == short


def test_orders_for_a_terminal_in_what_callers_sent_come_back_as_text() -> None:
    info = error_details_pb2.ErrorInfo()
    assert _details(InvalidInput("m", reason="R", remedy="\x1b[2J"))[0].Unpack(info)
    assert info.metadata["remedy"] == r"\x1b[2J"
    (told,) = fitting([FieldViolation(field="a\x07", description="\x9b2J")])
    assert (told.field, told.description) == (r"a\x07", r"\x9b2J")


def test_text_is_cut_by_its_bytes() -> None:
    assert cut("short", 10) == "short"
    assert cut("\U0001f34e" * 10, 12) == "\U0001f34e\U0001f34e..."
