"""Keeps the worker processes of this server alive: one a GPU, started anew when one dies or shows no life."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Sequence

from services.common.errors import NotReady
from services.trainer.liveness import LifeSigns

log = logging.getLogger(__name__)

POLL_S = 0.5
LONGEST_BACKOFF_S = 30.0
STOP_S = 60.0  # a worker that is told to stop writes a checkpoint of each of its jobs first
SILENT_S = 60.0
WORKER = (sys.executable, "-m", "services.trainer.worker", "--supervised")


class Supervisor:
    """Starts `count` workers and restarts those that die, more slowly the more often they do.

    A worker without a sign of life for `silent_s` seconds, stopped or hanging as a whole, is killed and replaced;
    `command` is that of a worker. Raises `NotReady` when there are fewer GPUs to share than workers.
    """

    def __init__(self, count: int, *, silent_s: float = SILENT_S, command: Sequence[str] = WORKER) -> None:
        refuse_more_workers_than_gpus(count)
        self._silent_s = silent_s
        self._command = command
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
            signs = LifeSigns()
            process = start_worker(self._command, index, signs)
            self._watch(process, index, signs)
            signs.silent_s()
            signs.close()
            if self._stopping.is_set():
                _stop(process)
                return
            # Only one that never gets to work is started ever more slowly.
            backoff_s = POLL_S if signs.was_ready else min(2 * backoff_s, LONGEST_BACKOFF_S)
            log.error("worker %d ended with code %s; starting it again in %.1f s", index, process.returncode, backoff_s)
            self._stopping.wait(backoff_s)

    def _watch(self, process: subprocess.Popen[bytes], index: int, signs: LifeSigns) -> None:
        """Return once the worker is dead, by itself or since it showed no life, or this server is to stop."""
        while process.poll() is None and not self._stopping.wait(POLL_S):
            if (silent_s := signs.silent_s()) > self._silent_s:
                log.error("worker %d has shown no life for %.0f s; it is killed", index, silent_s)
                process.kill()
                process.wait()


def start_worker(command: Sequence[str], index: int, signs: LifeSigns) -> subprocess.Popen[bytes]:
    """Start one worker, on GPU number `index` of those visible. Never forked: gRPC's threads forbid it."""
    environment = dict(os.environ)
    visible = visible_gpus()
    if visible != []:
        environment["CUDA_VISIBLE_DEVICES"] = visible[index] if visible else str(index)
    process = subprocess.Popen(  # noqa: S603 - a command of this server's own
        [*command, signs.option], env=environment, stdin=subprocess.PIPE, pass_fds=[signs.writing]
    )
    signs.handed_over()
    return process


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
