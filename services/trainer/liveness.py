"""Signs of life of a worker process: it writes a byte a second to a pipe, and its supervisor reads.

A process that is stopped, or that hangs as a whole, writes none and can be replaced. A hung step does not show here:
the thread that writes goes on, and the worker itself notices (`reporter.py`).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Sequence

OPTION = "--life-sign="
"""Of a worker's command line: the descriptor to write to."""
BEAT_S = 1.0
START_S = 900.0
"""Until the first sign: importing torch from a cold disk, or on a busy machine, takes minutes."""
LOADING, READY = b".", b"r"


def show_life(arguments: Sequence[str]) -> threading.Event:
    """Begin to write, from a thread of its own, if the command line asks for it; before anything slow.

    Set the event that is returned once the worker is ready to work: its supervisor is told.
    """
    ready = threading.Event()
    for argument in arguments:
        if argument.startswith(OPTION):
            descriptor = int(argument.removeprefix(OPTION))
            os.set_blocking(descriptor, False)
            threading.Thread(target=_write_on, args=(descriptor, ready), name="life-sign", daemon=True).start()
    return ready


def _write_on(descriptor: int, ready: threading.Event) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody reads any more
        while True:
            with contextlib.suppress(BlockingIOError):  # nobody has read for hours, which is no reason to hang too
                os.write(descriptor, READY if ready.is_set() else LOADING)
            time.sleep(BEAT_S)


class LifeSigns:
    """The supervisor's end of the pipe of one worker, which may be loading for a while before the first byte."""

    def __init__(self, *, start_s: float = START_S) -> None:
        self._start_s = start_s
        self._reading, self.writing = os.pipe()
        """`writing` is the worker's end."""
        os.set_blocking(self._reading, False)
        self._last_s = time.monotonic()
        self._seen = False
        self.was_ready = False
        """Whether the worker has said that it is ready to work; as of the last `silent_s`."""

    @property
    def option(self) -> str:
        """The argument that tells the worker where to write."""
        return f"{OPTION}{self.writing}"

    def handed_over(self) -> None:
        """The worker runs and has the writing end."""
        os.close(self.writing)

    def silent_s(self) -> float:
        """Seconds since the last sign; before the first, those that it is late by, below 0 while it is not."""
        with contextlib.suppress(BlockingIOError):
            while signs := os.read(self._reading, 1024):
                self._last_s, self._seen = time.monotonic(), True
                self.was_ready = self.was_ready or READY in signs
        return time.monotonic() - self._last_s - (0.0 if self._seen else self._start_s)

    def close(self) -> None:
        """Stop listening."""
        os.close(self._reading)
