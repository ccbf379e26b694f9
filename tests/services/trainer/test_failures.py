"""Failures: lack of memory is told from other errors, whichever memory it was and however deep it lies."""

from __future__ import annotations

import pytest
import torch

from services.common.errors import InvalidInput
from services.trainer.failures import failure_of, out_of_memory
from services.trainer.jobs import Fault

TOO_MUCH = 1 << 50  # elements


def raised(error: Exception, *, cause: Exception | None = None, context: Exception | None = None) -> Exception:
    """The error as it is when it comes out of the handling of another."""
    try:
        if context:
            try:
                raise context
            except Exception:  # noqa: BLE001 - any
                raise error  # noqa: B904 - without a cause on purpose
        raise error from cause
    except Exception as caught:  # noqa: BLE001 - any
        return caught


def real_allocation_failure() -> Exception:
    """What torch raises when main memory is too small."""
    with pytest.raises(RuntimeError) as failed:
        torch.empty(TOO_MUCH)
    return failed.value


def test_torch_without_main_memory_is_a_lack_of_resources() -> None:
    failure = failure_of(real_allocation_failure())
    assert (failure.fault, failure.reason) == (Fault.RESOURCE, "OUT_OF_MEMORY")
    assert "batch_size" in failure.remedy


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "OUT_OF_MEMORY"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried"), "OUT_OF_MEMORY"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "GPU_OUT_OF_MEMORY"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "GPU_OUT_OF_MEMORY"),
    ],
)
def test_each_memory_has_a_reason_of_its_own(error: Exception, reason: str) -> None:
    assert (failure_of(error).fault, failure_of(error).reason) == (Fault.RESOURCE, reason)
    assert out_of_memory(error)
    assert failure_of(error).message.rstrip(": ") == failure_of(error).message


def test_kernel_that_is_missing_for_a_fixed_order_is_told_with_the_setting() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError) as failed:
            torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
    finally:
        torch.use_deterministic_algorithms(before)
    failure = failure_of(failed.value)
    assert (failure.fault, failure.reason) == (Fault.SYSTEM, "INTERNAL")
    assert "FLUXSMITH_TRAINER_DETERMINISTIC" in failure.remedy


def test_lack_of_memory_that_led_to_another_error_is_found() -> None:
    short = torch.OutOfMemoryError("CUDA out of memory")
    assert failure_of(raised(ValueError("x"), cause=raised(KeyError("y"), cause=short))).reason == "GPU_OUT_OF_MEMORY"
    assert failure_of(raised(ValueError("x"), context=real_allocation_failure())).reason == "OUT_OF_MEMORY"


def test_error_that_hides_what_it_came_from_speaks_for_itself() -> None:
    error = InvalidInput("bad", reason="BAD", remedy="Do better.")
    error.__context__, error.__suppress_context__ = MemoryError(), True
    assert failure_of(error).reason == "BAD"


def test_other_runtime_errors_are_no_lack_of_memory() -> None:
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert failure_of(RuntimeError("a bug")).fault is Fault.SYSTEM


def test_errors_that_lead_to_each_other_in_a_circle_end() -> None:
    first, second = ValueError(), KeyError()
    first.__cause__, second.__cause__ = second, first
    assert not out_of_memory(first)
