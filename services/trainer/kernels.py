"""Which of a GPU's kernels torch uses here, process-wide: right ones, and ones that give the same bits each time."""

from __future__ import annotations

import os

import torch


def choose_kernels(*, deterministic: bool = True) -> None:
    """Call before the first product on the GPU; again changes nothing. On a CPU nothing changes either.

    cuDNN's attention stays out: its backward pass (torch 2.11, H200) ended in an illegal memory access in the first
    step at FLUX's full size; benchmarks/README.md has what was seen. Flash attention takes its place.
    `deterministic` sums gradients in a fixed order, so that a run that goes on from its checkpoint, or takes turns with
    others, ends with the bits it would have had.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for that, by NVIDIA's manual
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # finds bugs, and costs a write of every new tensor
