"""The most memory that one job used, of the GPU or of this process where there is none; and giving it back."""

from __future__ import annotations

import ctypes
import gc
import resource
from pathlib import Path

import torch

_MANY_OBJECTS = 50_000
STATM = Path("/proc/self/statm")  # pages: total, resident, ...


class MemoryPeak:
    """Counts from when it is made.

    On a GPU torch's allocator counts, without CUDA's own context; without one, memory is looked at now and then.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._peak_bytes = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self.look()

    def look(self) -> int:
        """The peak so far, in bytes."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        self._peak_bytes = max(self._peak_bytes, resident_bytes())
        return self._peak_bytes


def give_back() -> None:
    """Return what is free to the GPU and to the system, after a job; what is in use stays."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim_heap()


def collect_garbage() -> None:
    """Free what only refers to itself. For a server, whose objects are few but those that its imports have made.

    Python looks for such garbage once there are a quarter more objects than have stayed: with 600,000 of torch and
    diffusers that is after thousands of jobs, and takes most of a second. They are set aside, so that it takes none.
    """
    gc.collect()
    if len(gc.get_objects()) > _MANY_OBJECTS:
        gc.freeze()


def trim_heap() -> None:
    """Return freed memory to the system. glibc keeps a heap for each of many threads, with what they freed in it."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # other C libraries have none
        trim(0)


def resident_bytes() -> int:
    """Memory that this process has in RAM; where the system does not tell, the most that it ever had."""
    try:
        return int(STATM.read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
