"""Two S3 servers: each lets pass what the other one checks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from services.common.errors import Unavailable
from services.common.object_store import ObjectStore
from services.common.settings import StoreSettings
from services.ports import free_ports
from services.stack import Stack

START_S = 30.0


@pytest.fixture(scope="session")
def juicefs_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreSettings]:
    """Settings of a running `juicefs gateway`, which descends from MinIO."""
    folder = tmp_path_factory.mktemp("juicefs")
    settings = StoreSettings(
        endpoint=f"127.0.0.1:{free_ports(1)[0]}", access_key="fluxsmith", secret_key=SecretStr("juice-secret")
    )
    juicefs, meta = str(Path(sys.executable).with_name("juicefs")), f"sqlite3://{folder}/meta.db"
    blocks = f"{folder}/blocks/"
    subprocess.run(
        [juicefs, "format", "--storage", "file", "--bucket", blocks, "--trash-days", "0", meta, "jfs"],
        check=True,
        capture_output=True,
    )
    flags = ["--multi-buckets", "--keep-etag", "--object-tag", "--object-meta", "--no-banner", "--no-usage-report"]
    keys = {"MINIO_ROOT_USER": settings.access_key, "MINIO_ROOT_PASSWORD": settings.secret_key.get_secret_value()}
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [juicefs, "gateway", *flags, "--cache-dir", f"{folder}/cache", meta, settings.endpoint],
            env={**os.environ, **keys},
            stdout=log,
            stderr=log,
        )
    try:
        _wait_for(ObjectStore(settings), folder / "log")
        yield settings
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(params=["seaweedfs", "juicefs"])
def store_settings(request: pytest.FixtureRequest) -> StoreSettings:
    """Settings of each S3 server in turn."""
    if request.param == "juicefs":
        settings: StoreSettings = request.getfixturevalue("juicefs_settings")
        return settings
    stack: Stack = request.getfixturevalue("store_stack")
    return stack.store_settings


@pytest.fixture
def any_store(store_settings: StoreSettings) -> ObjectStore:
    """The object store on each S3 server in turn."""
    return ObjectStore(store_settings)


def _wait_for(store: ObjectStore, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            store.ensure_bucket()
        except Unavailable:
            if time.monotonic() > deadline:
                raise AssertionError(f"juicefs does not serve:\n{log.read_text()}") from None
            time.sleep(0.1)
        else:
            return
