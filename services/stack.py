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
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import IO

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import SecretStr

from services.common.errors import ServiceError
from services.common.object_store import ObjectStore
from services.common.settings import StoreSettings

ROOT = Path(__file__).resolve().parent.parent
START_S = 600.0  # FLUX.1-dev's files are read and hashed; one that ends early is noticed at once
STOP_S = 75.0  # the trainer waits for its workers, which write a checkpoint of each job


class StackError(Exception):
    """A part of the stack did not start; the message says which and where its log is."""


class Stack:
    """Context manager around the three servers. Ports of 0 mean any free one; addresses are known after entering."""

    def __init__(
        self, data: Path, *, encoder_port: int = 0, trainer_port: int = 0, environment: Mapping[str, str] | None = None
    ) -> None:
        self.data = data.resolve()
        free_encoder_port, free_trainer_port, store_port = free_ports(3)
        self.encoder_address = f"127.0.0.1:{encoder_port or free_encoder_port}"
        self.trainer_address = f"127.0.0.1:{trainer_port or free_trainer_port}"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._log_begins: dict[str, int] = {}
        self._store_command: list[str] = []
        self._extra = dict(environment or {})
        self.data.mkdir(parents=True, exist_ok=True)
        self._claims = [
            _claimed(self.encoder_address, "--encoder-port"),
            _claimed(self.trainer_address, "--trainer-port"),
        ]
        self._lock = _locked(self.data / "lock")
        self.store_settings = StoreSettings(
            endpoint=f"127.0.0.1:{store_port}", access_key="fluxsmith", secret_key=SecretStr(_secret(self.data))
        )

    def __enter__(self) -> Stack:
        try:
            for option, address in (("encoder", self.encoder_address), ("trainer", self.trainer_address)):
                _require_free(address, f"--{option}-port")
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
        folder = self.data / "store"
        folder.mkdir(exist_ok=True)
        self._store_command = _weed_command(folder, self.store_settings)
        self._spawn("store", self._store_command, self.environment_of_store())
        store = ObjectStore(self.store_settings)
        self._wait_until("store", lambda: _store_serves(store))

    def environment_of_store(self) -> dict[str, str]:
        """What SeaweedFS reads its credentials from."""
        settings = self.store_settings
        return {
            **os.environ,
            "AWS_ACCESS_KEY_ID": settings.access_key,
            "AWS_SECRET_ACCESS_KEY": settings.secret_key.get_secret_value(),
        }

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
        self._lock.close()
        for claim in self._claims:
            claim.close()

    def wait(self) -> None:
        """Wait for as long as everything runs; raises `StackError` when a process has ended."""
        while True:
            for name, process in self.processes.items():
                if process.poll() is not None:
                    raise StackError(
                        f"the {name} ended with code {process.returncode}; its log is {self.log_path(name)}"
                    )
            time.sleep(1)

    def stop_process(self, name: str, *, signal_number: int = signal.SIGTERM) -> None:
        """Send one process a signal, and wait for its end."""
        process = self.processes.pop(name, None)
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal_number)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if name == "store":
            self._remove_sockets()

    def log_path(self, name: str) -> Path:
        """Where a process writes its log."""
        return self.data / "logs" / f"{name}.log"

    def _spawn(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        path = self.log_path(name)
        path.parent.mkdir(exist_ok=True)
        with path.open("ab") as log:
            self._log_begins[name] = log.tell()  # of this run; lines of earlier ones tell nothing of it
            self.processes[name] = subprocess.Popen(  # noqa: S603 - our own commands
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[self._lock.fileno()],  # the folder stays locked as long as any of its processes lives
                start_new_session=True,
            )

    def store_sockets(self) -> list[Path]:
        """Files that SeaweedFS leaves behind, however it ends; those of gRPC in /tmp, whatever TMPDIR says."""
        ports = [flag.rpartition("=")[2] for flag in self._store_command if ".port" in flag]
        left = [path for port in ports for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock")]  # noqa: S108
        return [*left, _local_socket(self.store_settings)]

    def _remove_sockets(self) -> None:
        for path in self.store_sockets():
            path.unlink(missing_ok=True)

    def _wait_until(self, name: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_S
        while not ready():
            code = self.processes[name].poll()
            if code is not None or time.monotonic() > deadline:
                what = f"ended with code {code}" if code is not None else f"did not serve within {START_S:.0f} s"
                tail = self.log_path(name).read_bytes()[self._log_begins[name] :]
                lines = tail.decode(errors="replace").strip().splitlines()[-3:]
                raise StackError(f"the {name} {what}; its log is {self.log_path(name)}:\n  " + "\n  ".join(lines))
            time.sleep(0.1)


def exit_on_sigterm() -> None:
    """Make SIGTERM leave the context manager like any other exit, so that it stops what it started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def free_ports(count: int) -> list[int]:
    """So many different TCP ports on loopback that nothing listens on at this moment.

    They lie below those that the system gives to connections, any of which might take one before it is served on.
    """
    with ExitStack() as probes:
        sockets = [probes.enter_context(socket.socket()) for _ in range(count)]
        return [_bound(probe) for probe in sockets]


def _bound(probe: socket.socket) -> int:
    """Bind it to a free port and return that."""
    try:
        end = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        end = 32768
    lowest = min(10_000, end - 1)
    for _ in range(100):
        with suppress(OSError):
            probe.bind(("127.0.0.1", lowest + secrets.randbelow(end - lowest)))  # draws from nobody's seeded generator
            return int(probe.getsockname()[1])
    probe.bind(("127.0.0.1", 0))
    return int(probe.getsockname()[1])


def _require_free(address: str, option: str) -> None:
    """Raise `StackError` when something listens there: it would be taken for the service that could not start."""
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError as error:
            who = "a running fluxsmith service" if serves(address) else "another program"
            raise StackError(f"{address} is taken by {who}; stop it, or choose another {option}") from error


def _claimed(address: str, option: str) -> socket.socket:
    """Claim a port among stacks until the socket is closed; raises `StackError` when another stack has.

    Services bind their ports seconds after the stack found them free. Of two stacks that start at once, one would take
    the other's services for its own. A name that begins with a zero byte is of the same network as the port, and goes
    with its process.
    """
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0fluxsmith-stack-{address}")
    except OSError as error:
        claim.close()
        raise StackError(f"{address} is taken by another stack; stop it, or choose another {option}") from error
    return claim


def _locked(path: Path) -> IO[str]:
    """Take the folder's lock, so that no two stacks write to it; it notes who holds it."""
    lock = path.open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        raise StackError(
            f"a stack already runs on {path.parent} (started by process {lock.read().strip() or 'unknown'}); "
            "stop it first, or give another --data folder. If that process is gone, its servers are still there: "
            f"`fuser {path}` names them"
        ) from error
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _secret(data: Path) -> str:
    """The store's secret key, made once for a data folder and readable by its owner only."""
    path = data / "store-secret"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_hex(24))
    return path.read_text()


def _weed_command(folder: Path, settings: StoreSettings) -> list[str]:
    port = settings.endpoint.rpartition(":")[2]
    flags = [f"-{role}.port{kind}" for role in ("master", "volume", "filer", "admin") for kind in ("", ".grpc")]
    flags.append("-s3.port.grpc")
    return [
        str(Path(sys.executable).with_name("weed")),
        f"-logdir={folder.parent / 'logs'}",  # else they pile up in the folder for temporary files
        "-log_max_size_mb=100",
        "mini",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-s3.port={port}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.localSocket={_local_socket(settings)}",
        "-s3.autoCreateBucket=false",
        "-webdav=false",
        "-admin.ui=false",
        "-master.telemetry=false",
        *(f"{flag}={number}" for flag, number in zip(flags, free_ports(len(flags)), strict=True)),
    ]


def _local_socket(settings: StoreSettings) -> Path:
    port = settings.endpoint.rpartition(":")[2]
    return Path(tempfile.gettempdir()) / f"fluxsmith-{port}.sock"  # such paths may have 107 bytes at most


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
