"""The embedded stack: an S3 server, the encoder and the trainer on loopback, for laptops, the demo and tests.

    python -m services.stack --data DIR

Prints the addresses once everything serves, and stops it all on SIGINT or SIGTERM. What is in DIR stays and is there
again the next time.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import IO

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import SecretStr

from services.common.errors import ServiceError
from services.common.object_store import ObjectStore
from services.common.settings import StoreSettings
from services.embedded_store import EmbeddedStore
from services.ports import HOST, PortTaken, ReservedPorts
from services.private_files import UMASK, kept_private, open_private, private_folder, tighten

ROOT = Path(__file__).resolve().parent.parent
START_S = 600.0  # FLUX.1-dev's files are read and hashed; one that ends early is noticed at once
STOP_S = 75.0  # the trainer waits for its workers, which write a checkpoint of each job
STORE_STOP_S = 30.0  # it needs two seconds, and loses nothing that it acknowledged when it is killed
OURS = ("lock", "logs", "store", "store-run", "store-secret", "jobs.sqlite*")


class StackError(Exception):
    """A part of the stack did not start; the message says which and where its log is."""


class Stack:
    """Context manager around the three servers. Ports of 0 mean any free one; addresses are known after entering."""

    def __init__(
        self, data: Path, *, encoder_port: int = 0, trainer_port: int = 0, environment: Mapping[str, str] | None = None
    ) -> None:
        self.data = data.resolve()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._log_begins: dict[str, int] = {}
        self._extra = dict(environment or {})
        with ExitStack() as starting:
            self._ports = starting.enter_context(closing(ReservedPorts()))
            self.encoder_address = _reserved(self._ports, encoder_port, "--encoder-port")
            self.trainer_address = _reserved(self._ports, trainer_port, "--trainer-port")
            self._store = EmbeddedStore(self.data, self._ports)
            _make_private(self.data)
            self._lock = starting.enter_context(_locked(self.data / "lock"))
            self.store_settings = StoreSettings(
                endpoint=self._store.endpoint, access_key="fluxsmith", secret_key=SecretStr(_secret(self.data))
            )
            # A few of SeaweedFS's files do not heed the umask, and come at any time.
            starting.enter_context(kept_private(self.data / "store"))
            self._held = starting.pop_all()

    def __enter__(self) -> Stack:
        try:
            self.start_store()
            self.start_service("encoder", self.encoder_address)
            self.start_service("trainer", self.trainer_address)
            self.wait_for_service("encoder", self.encoder_address)
            self.wait_for_service("trainer", self.trainer_address)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that the services run with."""
        store = self.store_settings
        return {
            **os.environ,
            "FLUXSMITH_STORE_ENDPOINT": store.endpoint,
            "FLUXSMITH_STORE_ACCESS_KEY": store.access_key,
            "FLUXSMITH_STORE_SECRET_KEY": store.secret_key.get_secret_value(),
            "FLUXSMITH_BASE_MODEL": os.environ.get("FLUXSMITH_BASE_MODEL", str(ROOT / "assets" / "flux-tiny")),
            "FLUXSMITH_ENCODER_ADDRESS": self.encoder_address,
            "FLUXSMITH_TRAINER_ADDRESS": self.trainer_address,
            "FLUXSMITH_TRAINER_ENCODER_ADDRESS": self.encoder_address,
            "FLUXSMITH_TRAINER_DATABASE_URL": os.environ.get(
                "FLUXSMITH_TRAINER_DATABASE_URL", f"sqlite:///{self.data / 'jobs.sqlite'}"
            ),
            "OMP_WAIT_POLICY": "PASSIVE",
            **self._extra,
        }

    def start_store(self) -> None:
        """Start the S3 server and wait until an object written is read again."""
        self._store.prepare()
        environment = self._store.environment(self.store_settings)
        self._spawn("store", self._store.command, environment, folder=self._store.folder)
        store = ObjectStore(self.store_settings)
        self._wait_until("store", lambda: _store_serves(store))

    def start_service(self, name: str, address: str) -> None:
        """Start encoder or trainer without waiting for it."""
        del address  # it is in the environment
        self._spawn(name, [sys.executable, "-m", f"services.{name}"], self.environment)

    def wait_for_service(self, name: str, address: str) -> None:
        """Wait until a service says SERVING."""
        self._wait_until(name, lambda: serves(address))

    def stop(self) -> None:
        """Stop everything, the trainer first and the store last."""
        for name in sorted(self.processes, key=lambda name: (name == "store", name != "trainer")):
            self.stop_process(name)
        if not self._lock.closed:  # else another stack may have the folder by now
            tighten(self.data / "store")  # also what it wrote last
        self._held.close()

    def wait(self) -> None:
        """Wait for as long as everything runs; raises `StackError` when a process has ended."""
        while True:
            self._require_all_run()
            time.sleep(1)

    def stop_process(self, name: str, *, signal_number: int = signal.SIGTERM) -> None:
        """Send one process a signal, and wait for its end."""
        process = self.processes.pop(name, None)
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal_number)
            try:
                process.wait(STORE_STOP_S if name == "store" else STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if name == "store":
            self._store.remove_sockets()

    def log_path(self, name: str) -> Path:
        """Where a process writes its log."""
        return self.data / "logs" / f"{name}.log"

    def _spawn(self, name: str, command: list[str], environment: dict[str, str], *, folder: Path = ROOT) -> None:
        path = self.log_path(name)
        private_folder(path.parent)
        with open_private(path, "ab") as log:
            self._log_begins[name] = log.tell()  # of this run; lines of earlier ones tell nothing of it
            self.processes[name] = subprocess.Popen(  # noqa: S603 - our own commands
                command,
                cwd=folder,
                env=environment,
                umask=UMASK,  # also of the workers that the trainer starts
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[self._lock.fileno()],  # the folder stays locked as long as any of its processes lives
                start_new_session=True,
            )

    def store_sockets(self) -> list[Path]:
        """Files that SeaweedFS leaves behind when it is killed."""
        return self._store.sockets()

    def _wait_until(self, name: str, ready: Callable[[], bool]) -> None:
        """Wait for a part; raises `StackError` as soon as any part has ended, whichever is awaited."""
        deadline = time.monotonic() + START_S
        while not ready():
            self._require_all_run()
            if time.monotonic() > deadline:
                raise self._failure(name, f"did not serve within {START_S:.0f} s")
            time.sleep(0.1)

    def _require_all_run(self) -> None:
        for name, process in self.processes.items():
            if process.poll() is not None:
                raise self._failure(name, f"ended with code {process.returncode}")

    def _failure(self, name: str, what: str) -> StackError:
        """The error of a part, with the end of its log."""
        tail = self.log_path(name).read_bytes()[self._log_begins[name] :]
        lines = tail.decode(errors="replace").strip().splitlines()[-3:]
        return StackError(f"the {name} {what}; its log is {self.log_path(name)}:\n  " + "\n  ".join(lines))


def exit_on_sigterm() -> None:
    """Make SIGTERM leave the context manager like any other exit, so that it stops what it started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def _reserved(ports: ReservedPorts, port: int, option: str) -> str:
    """Reserve a port, any for 0, and return its address; raises `StackError` when it is taken.

    Services bind their ports seconds later. Of two stacks that start at once, one would take the other's services for
    its own; and what listens there already would be taken for the service that could not start.
    """
    try:
        return f"{HOST}:{ports.claim(port) if port else ports.take()}"
    except PortTaken as error:
        address = f"{HOST}:{error.port}"
        who = "another stack" if error.reserved else "another program"
        if serves(address):
            who = "a running fluxsmith service"
        raise StackError(f"{address} is taken by {who}; stop it, or choose another {option}") from error


def _make_private(data: Path) -> None:
    """Make the data folder and take all rights of others from it and what earlier stacks have left in it."""
    try:
        private_folder(data)
        for name in OURS:
            for path in data.glob(name):
                tighten(path)
    except OSError as error:
        raise StackError(
            f"the data folder {data} cannot be made its owner's alone: {error.strerror}; choose a folder of your own"
        ) from error


def _locked(path: Path) -> IO[bytes]:
    """Take the folder's lock, so that no two stacks write to it; it notes who holds it."""
    lock = open_private(path, "a+b")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        holder = lock.read().decode(errors="replace").strip() or "unknown"
        lock.close()
        raise StackError(
            f"a stack already runs on {path.parent} (started by process {holder}); "
            "stop it first, or give another --data folder. If that process is gone, its servers are still there: "
            f"`fuser {path}` names them"
        ) from error
    lock.truncate(0)
    lock.write(str(os.getpid()).encode())
    lock.flush()
    return lock


def _secret(data: Path) -> str:
    """The store's secret key, made once for a data folder and readable by its owner only."""
    path = data / "store-secret"
    if not path.exists():
        with open_private(path, "wb") as file:
            file.write(secrets.token_hex(24).encode())
    return path.read_text()


def _store_serves(store: ObjectStore) -> bool:
    try:
        store.ensure_bucket()
        key = "health/probe"
        return store.get(store.put(key, b"probe").key) == b"probe"
    except ServiceError:
        return False


def serves(address: str) -> bool:
    """Whether a service there says SERVING."""
    with grpc.insecure_channel(address) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2)
        except grpc.RpcError:
            return False
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


def main() -> int:
    """Run the stack in the foreground."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="folder for everything that is kept")
    parser.add_argument("--encoder-port", type=int, default=7401)
    parser.add_argument("--trainer-port", type=int, default=7402)
    arguments = parser.parse_args()
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # by `fluxsmith up`, while this was being imported
        signal.signal(signal.SIGINT, signal.default_int_handler)
    exit_on_sigterm()
    sys.stdout.write("Starting object store, encoder and trainer (ten seconds; longer with FLUX.1-dev)\n")
    sys.stdout.flush()
    try:
        with Stack(arguments.data, encoder_port=arguments.encoder_port, trainer_port=arguments.trainer_port) as stack:
            sys.stdout.write(
                f"Serving: encoder {stack.encoder_address}, trainer {stack.trainer_address}\n"
                f"Data and logs in {stack.data}. Ctrl-C stops everything.\n"
            )
            sys.stdout.flush()
            try:
                stack.wait()
            finally:
                sys.stdout.write("Stopping (the store last, which may take twenty seconds)\n")
                sys.stdout.flush()
    except KeyboardInterrupt:
        return 0
    except StackError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
