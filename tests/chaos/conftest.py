"""A real S3 server for the tests of the judge."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.common.object_store import ObjectStore
from services.stack import Stack


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """The object store of a stack of which only that runs."""
    stack = Stack(Path(tmp_path_factory.mktemp("stack")))
    try:
        stack.start_store()
        yield ObjectStore(stack.store_settings)
    finally:
        stack.stop()
