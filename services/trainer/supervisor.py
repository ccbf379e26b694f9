"""Keeps the worker processes of this server alive: one a GPU, started anew when one dies."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time

from services.common.errors import NotReady

log = logging.getLogger(__name__)

POLL_S = 0.5
LONGEST_BACKOFF_S = 30.0
STOP_S = 15.0


class Supervisor:
    """Starts `count` workers and restarts those that die, more slowly the more often they do.

    Raises `NotReady` when there are fewer GPUs to share than workers.
    """

    def __init__(self, count: int) -> None:
        refuse_more_workers_than_gpus(count)
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._keep_alive, args=(index,), name=f"worker-{index}") for index in range(count)
        ]

    def start(self) -> None:
        """Start the workers."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop the workers; their jobs go back into the queue."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _keep_alive(self, index: int) -> None:
        backoff_s = POLL_S
        while not self._stopping.is_set():
            started_s = time.monotonic()
            process = start_worker(index)
            while process.poll() is None and not self._stopping.wait(POLL_S):
                pass
            if self._stopping.is_set():
                _stop(process)
                return
            lived_s = time.monotonic() - started_s
            backoff_s = POLL_S if lived_s > LONGEST_BACKOFF_S else min(2 * backoff_s, LONGEST_BACKOFF_S)
            log.error("worker %d ended with code %s; starting it again in %.1f s", index, process.returncode, backoff_s)
            self._stopping.wait(backoff_s)


def start_worker(index: int) -> subprocess.Popen[bytes]:
    """Start one worker, on GPU number `index` of those visible. Never forked: gRPC's threads forbid it."""
    environment = dict(os.environ)
    visible = visible_gpus()
    if visible != []:
        environment["CUDA_VISIBLE_DEVICES"] = visible[index] if visible else str(index)
    return subprocess.Popen(
        [sys.executable, "-m", "services.trainer.worker", "--supervised"], env=environment, stdin=subprocess.PIPE
    )


def visible_gpus() -> list[str] | None:
    """The GPUs that CUDA_VISIBLE_DEVICES names; empty when it hides all, None when it is not set."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if value is None else [gpu for gpu in value.split(",") if gpu]


def refuse_more_workers_than_gpus(count: int) -> None:
    """Raise `NotReady` when CUDA_VISIBLE_DEVICES names some GPUs, but fewer than `count`."""
    visible = visible_gpus()
    if visible and count > len(visible):
        raise NotReady(
            f"{count} workers cannot share {len(visible)} GPUs",
            reason="TOO_FEW_GPUS",
            remedy="Lower FLUXSMITH_TRAINER_WORKERS, or name more in CUDA_VISIBLE_DEVICES.",
        )


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
