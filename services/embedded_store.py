"""SeaweedFS as the embedded store: one process that answers nobody on loopback but signed S3 requests."""

from __future__ import annotations

import os
import socket
import stat
import sys
from pathlib import Path

from services.common.settings import StoreSettings
from services.ports import ReservedPorts
from services.private_files import open_private, private_folder
from services.store_keys import fresh_keys

ROLES = ("master", "volume", "filer")
# Its maintenance worker looks for the admin server's gRPC there, whatever that was told; with another program there it
# would take orders from it.
ADMIN_GRPC_OFFSET = 10_000
SOCKETS = ("s3.sock", "filer.sock")


class EmbeddedStore:
    """How to run SeaweedFS on the folder `data`: its command, its environment, and what it leaves behind.

    It runs in `data/store-run`, where its keys and sockets are: a socket's whole path may have 107 bytes at most.
    """

    def __init__(self, data: Path, ports: ReservedPorts) -> None:
        self._data = data
        self.folder = data / "store-run"
        flags = {f"-{role}.port": ports.take() for role in ROLES}
        for flag in [*flags, "-s3.port"]:
            flags[f"{flag}.grpc"] = ports.take(suits=has_no_stranger)
        flags["-admin.port"] = ports.take(beside=ADMIN_GRPC_OFFSET, suits=_has_no_stranger_beside)
        flags["-admin.port.grpc"] = flags["-admin.port"] + ADMIN_GRPC_OFFSET
        flags["-s3.port"] = ports.take()
        self.endpoint = f"127.0.0.1:{flags['-s3.port']}"
        self._ports = flags

    def prepare(self) -> None:
        """Make its folders, and remove sockets of a store that was killed here."""
        private_folder(self._data / "store")
        private_folder(self.folder)
        self.remove_sockets()
        with open_private(self._note, "wb") as note:
            note.write("".join(f"{path}\n" for path in self._grpc_sockets()).encode())

    @property
    def command(self) -> list[str]:
        """The command line; to be run in `folder`."""
        return [
            str(Path(sys.executable).with_name("weed").absolute()),
            f"-logdir={self._data / 'logs'}",  # else they pile up in the folder for temporary files
            "-log_max_size_mb=100",
            "mini",
            f"-dir={self._data / 'store'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-disableHttp",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.localSocket={SOCKETS[0]}",
            f"-filer.localSocket={SOCKETS[1]}",
            "-s3.autoCreateBucket=false",
            "-webdav=false",
            "-admin.ui=false",
            "-master.telemetry=false",
            *(f"{flag}={port}" for flag, port in self._ports.items()),
        ]

    def environment(self, settings: StoreSettings) -> dict[str, str]:
        """What it reads credentials and keys from; certificates are made anew."""
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("WEED_")},
            **fresh_keys(self.folder),
            # Volumes split into shards are for clusters; a single server only loses by it.
            "WEED_MAINTENANCE_ERASURE_CODING_ENABLED": "false",
            "AWS_ACCESS_KEY_ID": settings.access_key,
            "AWS_SECRET_ACCESS_KEY": settings.secret_key.get_secret_value(),
        }

    def sockets(self) -> list[Path]:
        """Files that it leaves behind when it is killed."""
        return [*(self.folder / name for name in SOCKETS), *self._grpc_sockets()]

    def remove_sockets(self) -> None:
        """Remove what a store that no longer runs has left, this one or the one before."""
        for name in SOCKETS:
            (self.folder / name).unlink(missing_ok=True)
        try:
            noted = [Path(line) for line in self._note.read_text().splitlines()]
        except FileNotFoundError:
            noted = []
        for path in {*self._grpc_sockets(), *noted}:
            if _is_left(path):
                path.unlink(missing_ok=True)

    @property
    def _note(self) -> Path:
        return self.folder / "sockets"

    def _grpc_sockets(self) -> list[Path]:
        roles = {flag: flag[1:].partition(".")[0] for flag in self._ports if flag.endswith(".grpc")}
        return [_grpc_socket(role, self._ports[flag]) for flag, role in roles.items()]


def _grpc_socket(role: str, port: int) -> Path:
    """Where SeaweedFS puts a gRPC socket, whatever TMPDIR says.

    It is the owner's alone as all of SeaweedFS's files are, and both ends ask for a certificate of the store's own.
    """
    return Path(f"/tmp/seaweedfs-{role}-grpc-{port}.sock")  # noqa: S108 - the name is not ours to choose


def has_no_stranger(port: int) -> bool:
    """Whether SeaweedFS can make its socket for this port: it cannot where another user has made one."""
    paths = [_grpc_socket(role, port) for role in (*ROLES, "s3", "admin")]
    owners = {path.lstat().st_uid for path in paths if path.is_symlink() or path.exists()}
    return os.geteuid() == 0 or owners <= {os.geteuid()}


def _has_no_stranger_beside(port: int) -> bool:
    return has_no_stranger(port + ADMIN_GRPC_OFFSET)


def _is_left(path: Path) -> bool:
    """Whether this is a socket of this user's that nothing listens on."""
    try:
        status = path.lstat()
    except OSError:
        return False
    if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.geteuid():
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False
