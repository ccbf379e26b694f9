"""Whose fault an error of a job was, and what to do about it."""

from __future__ import annotations

import torch

from services.common.errors import ServiceError
from services.common.object_store import ObjectDamaged, ObjectMissing
from services.trainer.adapters.adapter import NonFiniteAdapter
from services.trainer.adapters.files import DtypeTooSmall
from services.trainer.jobs import Fault, JobFailure
from services.trainer.train import NonFiniteLoss


def failure_of(error: Exception) -> JobFailure:
    """What the job's owner is told of an error."""
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
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return JobFailure(
            fault=Fault.RESOURCE,
            reason="GPU_OUT_OF_MEMORY",
            message=f"CUDA out of memory: {error}",
            remedy="Reduce batch_size, resolution_px or rank, and keep gradient_checkpointing on.",
        )
    if isinstance(error, ServiceError):
        fault = Fault.SYSTEM if isinstance(error, (ObjectMissing, ObjectDamaged)) else Fault.USER
        return JobFailure(fault=fault, reason=error.reason, message=error.message, remedy=error.remedy)
    return JobFailure(
        fault=Fault.SYSTEM,
        reason="INTERNAL",
        message=f"internal error ({type(error).__name__})",
        remedy="The worker's log has the traceback; report it with the job's identifier.",
    )
