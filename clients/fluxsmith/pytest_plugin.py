"""Fixtures of pytest for programs that use this library: `pytest_plugins = ["fluxsmith.pytest_plugin"]`.

It is not registered as an entry point: every run of pytest in an environment with fluxsmith would pay for its import.
"""

from collections.abc import Iterator
from uuid import uuid4

import pytest

from fluxsmith.client import Client
from fluxsmith.testing import Server


@pytest.fixture(scope="session")
def fluxsmith_server() -> Iterator[Server]:
    """Serve for all tests of the run; with pytest-xdist, for those of one of its workers."""
    with Server() as server:
        yield server


@pytest.fixture
def fluxsmith_client(fluxsmith_server: Server) -> Iterator[Client]:
    """Return a client as a tenant of this test's own, which sees no dataset and no job of other tests."""
    with fluxsmith_server.client(tenant=f"test-{uuid4().hex}") as client:
        yield client
