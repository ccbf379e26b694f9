"""Signs of life: who writes is heard, who does not grows silent, and neither end hangs on the other."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

from services.trainer.liveness import LifeSigns, show_life

WRITES = """import sys; from services.trainer import liveness; liveness.show_life(sys.argv)
while True: sum(range(10_000))"""
MUTE = "import time; time.sleep(60)"


def started(code: str, signs: LifeSigns) -> subprocess.Popen[bytes]:
    """A process that may write to the signs."""
    process = subprocess.Popen([sys.executable, "-c", code, signs.option], pass_fds=[signs.writing])
    signs.handed_over()
    return process


def comes_true(condition: Callable[[], bool], *, timeout_s: float = 120.0) -> bool:
    """Whether it does in time."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)
    return True


def test_process_that_is_busy_is_heard_nevertheless() -> None:
    signs = LifeSigns(start_s=0.0)
    time.sleep(0.1)
    assert signs.silent_s() >= 0.1
    process = started(WRITES, signs)
    try:
        for _ in range(3):  # again and again
            last_s = signs._last_s
            assert comes_true(lambda last_s=last_s: signs.silent_s() >= 0 and signs._last_s > last_s)  # type: ignore[misc]
    finally:
        process.kill()
        process.wait()
        signs.close()


def test_process_that_does_not_write_grows_silent() -> None:
    signs = LifeSigns(start_s=0.0)
    process = started(MUTE, signs)
    try:
        assert comes_true(lambda: signs.silent_s() > 1.0)
    finally:
        process.kill()
        process.wait()
        signs.close()


def test_end_of_the_process_is_no_sign_of_life() -> None:
    signs = LifeSigns(start_s=0.0)
    signs.handed_over()  # nobody has the writing end any more
    time.sleep(0.1)
    assert signs.silent_s() >= 0.1
    signs.close()


def test_worker_outlives_a_reader_that_never_reads() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        while True:
            os.write(writing, b"." * 4096)
    except BlockingIOError:
        pass
    show_life([f"--life-sign={writing}"])
    time.sleep(0.2)
    os.read(reading, 65536)
    assert comes_true(lambda: os.read(reading, 1) == b".")
    os.close(reading)  # and one that is gone: the thread ends by itself


def test_slow_start_is_no_silence() -> None:
    signs = LifeSigns()
    assert signs.silent_s() < 0
    signs.handed_over()
    signs.close()
