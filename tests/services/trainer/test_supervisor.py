"""The supervisor: workers that die or hang are replaced, and all end with it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.common.errors import NotReady
from services.trainer.supervisor import Supervisor, refuse_more_workers_than_gpus
from tests.services.trainer.test_liveness import comes_true

WORKER = """
import os, pathlib, signal, sys, time
from services.trainer import liveness
liveness.show_life(sys.argv)
folder = pathlib.Path(sys.argv[1])
first = not any(folder.iterdir())
def told(*_):
    (folder / f"{os.getpid()}.told").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, told)
(folder / str(os.getpid())).touch()
"""
LIVE = "while True: time.sleep(0.1)"
Started = Callable[[], set[int]]


@contextmanager
def supervised(folder: Path, code: str, *, silent_s: float = 60.0, count: int = 1) -> Iterator[Started]:
    """Workers that run `code` after they wrote their process id; yields a function that tells all ids so far."""
    folder.mkdir()
    supervisor = Supervisor(count, silent_s=silent_s, command=(sys.executable, "-c", WORKER + code, str(folder)))
    supervisor.start()
    try:
        yield lambda: {int(path.name) for path in folder.iterdir() if not path.suffix}
    finally:
        supervisor.close()


def lives(process_id: int) -> bool:
    """Whether there is such a process, stopped ones included."""
    return Path(f"/proc/{process_id}").exists()


def test_worker_that_is_stopped_as_a_whole_is_killed_and_replaced(tmp_path: Path) -> None:
    code = f"if first: time.sleep(1.5), os.kill(os.getpid(), signal.SIGSTOP)\n{LIVE}"
    with supervised(tmp_path / "w", code, silent_s=3.0) as started:
        assert comes_true(lambda: len(started()) == 1)
        (stopped,) = started()
        assert comes_true(lambda: len(started()) >= 2)
        assert not lives(stopped)


def test_worker_that_dies_is_replaced(tmp_path: Path) -> None:
    with supervised(tmp_path / "w", LIVE) as started:
        assert comes_true(lambda: len(started()) == 1)
        (first,) = started()
        os.kill(first, signal.SIGKILL)
        assert comes_true(lambda: len(started()) == 2)


def test_worker_that_is_busy_but_alive_is_left_alone(tmp_path: Path) -> None:
    with supervised(tmp_path / "w", "while True: sum(range(10_000))", silent_s=60.0) as started:
        assert comes_true(lambda: len(started()) == 1)
        assert not comes_true(lambda: len(started()) > 1, timeout_s=3.0)  # many looks


def test_workers_are_told_to_stop_and_end_with_the_supervisor(tmp_path: Path) -> None:
    with supervised(tmp_path / "w", LIVE, count=2) as started:
        assert comes_true(lambda: len(started()) == 2)
        both = started()
    assert {path.stem for path in (tmp_path / "w").glob("*.told")} == {str(each) for each in both}
    assert not any(map(lives, both))


def test_fewer_gpus_than_workers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    refuse_more_workers_than_gpus(2)
    with pytest.raises(NotReady, match="3 workers cannot share 2 GPUs"):
        refuse_more_workers_than_gpus(3)


def test_each_worker_has_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    code = f"(folder / f'{{os.getpid()}}.gpu').write_text(os.environ['CUDA_VISIBLE_DEVICES'])\n{LIVE}"
    with supervised(tmp_path / "w", code, count=2):
        assert comes_true(lambda: sorted(path.read_text() for path in (tmp_path / "w").glob("*.gpu")) == ["4", "7"])
