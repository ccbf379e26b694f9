"""Whose fault an error of a job was, and what to do about it."""

from __future__ import annotations

import torch

from services.common.errors import ServiceError
from services.common.object_store import ObjectDamaged, ObjectMissing
from services.trainer.adapters.adapter import NonFiniteAdapter
from services.trainer.adapters.files import DtypeTooSmall
from services.trainer.jobs import Fault, JobFailure
from services.trainer.train import NonFiniteLoss

# What torch's allocator of main memory says, on Unix and on Windows, in a plain RuntimeError.
HOST_ALLOCATOR = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")

# What comes from CUDA's libraries past torch's own allocator, in a plain RuntimeError too.
PAST_GPU_ALLOCATOR = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")

NO_FIXED_ORDER = ("does not have a deterministic implementation",)  # with torch.use_deterministic_algorithms


def failure_of(error: BaseException) -> JobFailure:
    """What the job's owner is told of an error."""
    if lack := _lack_of_memory(error):
        return _no_memory(lack)
    if isinstance(error, DtypeTooSmall):
        return JobFailure(
            fault=Fault.USER,
            reason="FILE_DTYPE_TOO_SMALL",
            message=f"the adapter does not fit its file: {error}",
            remedy="Set file_dtype to BF16 or FP32.",
        )
    if isinstance(error, (NonFiniteLoss, NonFiniteAdapter)):
        return JobFailure(
            fault=Fault.USER,
            reason="NON_FINITE_LOSS",
            message=f"training diverged: {error}",
            remedy="Lower the learning rate; if it is low already, look for broken images in the dataset.",
        )
    if isinstance(error, ServiceError):
        fault = Fault.SYSTEM if isinstance(error, (ObjectMissing, ObjectDamaged)) else Fault.USER
        return JobFailure(fault=fault, reason=error.reason, message=error.message, remedy=error.remedy)
    if lacks_fixed_order(error):
        return JobFailure(
            fault=Fault.SYSTEM,
            reason="INTERNAL",
            message=f"the GPU has no kernel that sums in a fixed order: {error}",
            remedy="Let the operator set FLUXSMITH_TRAINER_DETERMINISTIC to false, and report it.",
        )
    return JobFailure(
        fault=Fault.SYSTEM,
        reason="INTERNAL",
        message=f"internal error ({type(error).__name__})",
        remedy="The worker's log has the traceback; report it with the job's identifier.",
    )


def lacks_fixed_order(error: BaseException) -> bool:
    """Whether a GPU has no kernel that gives the same bits each time for something that was to be computed so."""
    return _says(error, NO_FIXED_ORDER)


def out_of_memory(error: BaseException) -> bool:
    """Whether the GPU's memory or main memory was too small, also when that is only what led to the error."""
    return _lack_of_memory(error) is not None


def _lack_of_memory(error: BaseException) -> BaseException | None:
    """The error itself, or the first of those it came from, that says that memory was too small."""
    seen: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in seen:
        if _says_no_memory(following):
            return following
        seen.append(following)
        suppressed = following.__suppress_context__ or following.__cause__
        following = following.__cause__ if suppressed else following.__context__
    return None


def _says_no_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or _of_gpu(error) or _says(error, HOST_ALLOCATOR)


def _of_gpu(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or _says(error, PAST_GPU_ALLOCATOR)


def _says(error: BaseException, texts: tuple[str, ...]) -> bool:
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)


def _no_memory(error: BaseException) -> JobFailure:
    if _of_gpu(error):
        return JobFailure(
            fault=Fault.RESOURCE,
            reason="GPU_OUT_OF_MEMORY",
            message=f"CUDA out of memory: {error}",
            remedy="Reduce batch_size, resolution_px or rank, and keep gradient_checkpointing on.",
        )
    return JobFailure(
        fault=Fault.RESOURCE,
        reason="OUT_OF_MEMORY",
        message=f"the worker's main memory was too small: {str(error).strip() or type(error).__name__}",
        remedy="Reduce batch_size, resolution_px or rank; or let the operator lower FLUXSMITH_TRAINER_ACTIVE_JOBS.",
    )
