"""Memory of this process as the system counts it, sampled by a thread while something runs."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import TracebackType

STATM = Path("/proc/self/statm")


def resident_bytes() -> int:
    """Resident memory of this process now."""
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class ResidentMemory:
    """Context manager: samples resident memory from entering to leaving."""

    def __init__(self, *, every_s: float = 0.02) -> None:
        self._every_s = every_s
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.samples: list[tuple[float, int]] = []
        """Seconds since entering, and bytes."""

    @property
    def peak_bytes(self) -> int:
        """Most that was seen."""
        return max(resident for _, resident in self.samples)

    def __enter__(self) -> ResidentMemory:
        self._began_s = time.monotonic()
        self._note()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        self._note()

    def _sample(self) -> None:
        while not self._end.wait(self._every_s):
            self._note()

    def _note(self) -> None:
        self.samples.append((time.monotonic() - self._began_s, resident_bytes()))
