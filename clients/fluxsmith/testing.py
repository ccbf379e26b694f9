"""A server inside the test process, for the tests of programs that use this library.

    import fluxsmith.testing

    with fluxsmith.testing.Server() as server, server.client() as client:
        job = client.train(client.datasets.create_from_folder("tests/drawings"), steps=2)
        job.wait()

Everything is real: encoder, trainer and worker are threads of the process, the base is flux-tiny on the CPU. It needs a
checkout of fluxsmith with the extra `all`, which the wheel of the client library does not bring. With pytest, name the
plugin in the outermost `conftest.py`: `pytest_plugins = ["fluxsmith.pytest_plugin"]`.
"""

import os
import sys
from importlib import import_module
from os import PathLike
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self

from fluxsmith._async.client import AsyncClient
from fluxsmith.client import Client
from fluxsmith.errors import FluxsmithError

_INSTALL = 'Clone fluxsmith, and install it into this environment: pip install --editable "FOLDER[all]".'


class CannotServe(FluxsmithError):
    """The test server did not start. `reason` is CHECKOUT_MISSING, PACKAGE_MISSING or NOT_STARTED."""


class Server:
    """Encoder, trainer and worker as threads of this process; a context manager.

    Entering takes some seconds, mostly for importing torch, and may raise `CannotServe`. Each server has ports, a store
    and a database of its own, which are gone when it is left. One in a process is enough: tests keep apart by tenants.
    `base_model` is a model folder to serve instead of flux-tiny.
    """

    def __init__(self, base_model: str | PathLike[str] | None = None) -> None:
        self._base_model = None if base_model is None else Path(base_model)
        self._servers: Any = None

    @property
    def encoder(self) -> str:
        """Address of the encoder; raises `RuntimeError` unless it serves."""
        return str(self._serving().encoder_address)

    @property
    def trainer(self) -> str:
        """Address of the trainer; raises `RuntimeError` unless it serves."""
        return str(self._serving().trainer_address)

    def _serving(self) -> Any:
        if self._servers is None:
            raise RuntimeError("the test server serves within its `with` block only")
        return self._servers

    def client(self, tenant: str = "default") -> Client:
        """Return a client of this server; to be closed by the caller."""
        return Client(encoder=self.encoder, trainer=self.trainer, tenant=tenant)

    def async_client(self, tenant: str = "default") -> AsyncClient:
        """Return a client for asyncio of this server; to be closed by the caller."""
        return AsyncClient(encoder=self.encoder, trainer=self.trainer, tenant=tenant)

    def __enter__(self) -> Self:
        if self._servers is not None:
            raise RuntimeError("the test server serves already: make another one, or share this one")
        services = _services()
        servers = services.Servers(self._base_model)
        try:
            servers.__enter__()
        except services.StackError as error:
            message, remedy = f"the test server did not start: {error}", "Mend what it names, and start it again."
            raise CannotServe(message, reason="NOT_STARTED", remedy=remedy) from error
        self._servers = servers
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        servers, self._servers = self._servers, None
        if servers.process_id == os.getpid():  # a fork has the object, and none of its threads
            servers.__exit__(kind, error, trace)


def _services() -> ModuleType:
    """Import the services, which are not part of the wheel; raises `CannotServe`."""
    try:
        return import_module("services.in_process")
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing.partition(".")[0] != "services":
            message = f"the test server needs the package {missing!r}, which is not installed."
            raise CannotServe(message, reason="PACKAGE_MISSING", remedy=_INSTALL) from error
        message = "the test server needs the services of a checkout of fluxsmith, which the wheel does not bring."
        remedy = _INSTALL
        if hiding := getattr(sys.modules.get("services"), "__path__", None):
            message = f"the package 'services' in {next(iter(hiding))} hides that of fluxsmith, which serves."
            remedy = (
                "Take its folder from sys.path, or give the package another name, in the tests that use the server."
            )
        raise CannotServe(message, reason="CHECKOUT_MISSING", remedy=remedy) from error
