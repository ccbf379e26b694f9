"""Encoder, trainer and one worker as threads of this process, for the tests of those who use the client library.

`fluxsmith.testing` is what they see of it. Only the object store, a program of its own, is a process.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Protocol

from services.common.errors import ServiceError
from services.common.logs import hide_progress_bars
from services.common.server import OnServing, Until
from services.common.settings import ServiceSettings, StoreSettings
from services.encoder import app as encoder
from services.encoder.settings import EncoderSettings
from services.stack import ROOT, Stack, StackError
from services.trainer import app as trainer
from services.trainer.settings import TrainerSettings
from services.trainer.worker import work

ANY_PORT = "127.0.0.1:0"
# A process that is killed may still write for a moment: what it leaves is removed until nothing is left of it.
_END = """
read -r _ && exit
kill -KILL "$1"; shift
for _ in 1 2 3 4 5 6 7 8 9 10; do sleep 0.2; rm -rf "$@" && exit; done
"""
FOR_EVER_S = 1e9  # a worker whose job hangs ends its process, which here is the tests'


class Servers:
    """Context manager around a store, an encoder, a trainer and a worker; addresses are known after entering.

    Everything they keep is in a folder that goes with them. They run on the CPU, and of the environment's settings they
    read none: those may name a database and a store in earnest. Entering raises `StackError`.
    """

    encoder_address = ""
    trainer_address = ""

    def __init__(self, base_model: Path | None = None) -> None:
        model = base_model or ROOT / "assets" / "flux-tiny"
        self._service = ServiceSettings.model_construct(base_model=str(model), device="cpu", dtype="fp32")
        self._running = ExitStack()
        self.process_id = os.getpid()

    def __enter__(self) -> Servers:
        hide_progress_bars()
        try:
            self._start()
        except ServiceError as error:
            raise StackError(error.log_line) from error
        return self

    def _start(self) -> None:
        with ExitStack() as starting:
            folder = Path(starting.enter_context(TemporaryDirectory(prefix="fluxsmith-testing-")))
            store = starting.enter_context(_store(folder))
            encoder_settings = EncoderSettings.model_construct(address=ANY_PORT)
            serve = partial(encoder.run, self._service, encoder_settings, store)
            self.encoder_address = starting.enter_context(_ServerThread("encoder", serve))
            trainer_settings = TrainerSettings.model_construct(
                address=ANY_PORT,
                encoder_address=self.encoder_address,
                database_url=f"sqlite:///{folder / 'jobs.sqlite'}",
                workers=0,
                stall_s=FOR_EVER_S,
            )
            serve = partial(trainer.run, self._service, trainer_settings, store)
            self.trainer_address = starting.enter_context(_ServerThread("trainer", serve))
            starting.enter_context(_worker(partial(work, self._service, trainer_settings, store)))
            self._running = starting.pop_all()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()


@contextmanager
def _store(folder: Path) -> Iterator[StoreSettings]:
    stack = Stack(folder)
    try:
        stack.start_store()
        with _ended_with_this_process(stack.processes["store"].pid, folder, *stack.store_sockets()):
            yield stack.store_settings
    except FileNotFoundError as error:
        raise StackError(f"the object store's program is missing: {error.filename}") from error
    finally:
        stack.stop_process("store", signal_number=signal.SIGKILL)  # in order it takes seconds, to save what goes anyway
        stack.stop()


@contextmanager
def _ended_with_this_process(pid: int, *left: Path) -> Iterator[None]:
    """End a process and remove what it leaves should this one be killed: the watcher's standard input ends with it."""
    command = ["sh", "-c", _END, "watcher", str(pid), *map(str, left)]
    watcher = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)  # noqa: S603 - our own
    try:
        yield
    finally:
        watcher.communicate(b"done\n")


class _Serve(Protocol):
    def __call__(self, *, until: Until, on_serving: OnServing) -> None: ...


class _ServerThread:
    """A server in a thread. Entering waits until it serves and gives its address, or raises what it raised."""

    def __init__(self, name: str, serve: _Serve) -> None:
        self._serve = serve
        self._stop = threading.Event()
        self._address: Future[str] = Future()
        self._thread = threading.Thread(target=self._run, name=f"fluxsmith-{name}", daemon=True)

    def __enter__(self) -> str:
        self._thread.start()
        try:
            return self._address.result()
        except BaseException:  # also when the wait is interrupted
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._serve(until=partial(asyncio.to_thread, self._stop.wait), on_serving=self._address.set_result)
        except BaseException as error:
            if self._address.done():
                raise
            self._address.set_exception(error)


@contextmanager
def _worker(run: Callable[[threading.Event, threading.Event], None]) -> Iterator[None]:
    """A worker in a thread; what keeps it from getting ready is raised."""
    stop, ready = threading.Event(), threading.Event()
    failure: list[BaseException] = []

    def work_on() -> None:
        try:
            run(stop, ready)
        except BaseException as error:
            if ready.is_set():
                raise
            failure.append(error)
            ready.set()

    thread = threading.Thread(target=work_on, name="fluxsmith-worker", daemon=True)
    thread.start()
    try:
        ready.wait()
        if failure:
            raise failure[0]
        yield
    finally:
        stop.set()
        thread.join()
