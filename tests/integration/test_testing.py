"""The server for users' own tests: all of it is real, and nothing of it is left."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from fluxsmith.testing import CannotServe, Server

ROOT = Path(__file__).resolve().parents[2]
USERS_TESTS = """
import fluxsmith, pytest

@pytest.mark.parametrize("number", [1, 2])
def test_product(fluxsmith_client: fluxsmith.Client, number: int) -> None:
    dataset = fluxsmith_client.datasets.create(name=f"drawings {number}")
    assert [each.id for each in fluxsmith_client.datasets.list()] == [dataset.id]
"""


def run(code: str, *, path: tuple[Path, ...]) -> subprocess.CompletedProcess[str]:
    """A Python that finds packages in `path` before the installed ones, and no services of a checkout beside."""
    without = "import os, sys; sys.path[:] = [p for p in sys.path if not os.path.exists(p + '/services/stack.py')]\n"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run(
        [sys.executable, "-c", without + code], env=environment, capture_output=True, text=True, check=False, cwd="/"
    )


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files, with a short name: one of a socket may have 107 bytes."""
    with TemporaryDirectory() as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def running() -> set[str]:
    """Threads of this process, and its children."""
    threads = {thread.name for thread in threading.enumerate()} - {"tqdm_monitor"}  # which tqdm keeps for the next bar
    return threads | set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_server_trains_twice_in_one_process_and_leaves_nothing(drawings: Path, temporary: Path, tmp_path: Path) -> None:
    before = running()
    for _ in range(2):
        with Server() as server, server.client() as client:
            job = client.train(client.datasets.create_from_folder(drawings), steps=2)
            job.wait()
            assert job.download(tmp_path / "lora.safetensors").stat().st_size > 0
        assert running() <= before
        assert not left_in(temporary)


def test_server_is_entered_once_and_has_addresses_only_then(temporary: Path) -> None:
    server = Server()
    with pytest.raises(RuntimeError, match="within its `with` block"):
        _ = server.encoder
    with server, server.client() as client:
        with pytest.raises(RuntimeError, match="serves already"):
            server.__enter__()
        if not (child := os.fork()):  # leaves the block too, and must end nobody's store
            server.__exit__(None, None, None)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        client.check_services()
        client.datasets.create(name="stored")
    with pytest.raises(RuntimeError, match="within its `with` block"):
        server.client()


def test_nothing_is_left_when_the_process_is_killed(temporary: Path) -> None:
    code = "import os, fluxsmith.testing\nwith fluxsmith.testing.Server(): os.kill(os.getpid(), 9)"
    environment = {**os.environ, "TMPDIR": str(temporary)}
    killed = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert killed.returncode == -9
    deadline_s = time.monotonic() + 10
    while left := [*left_in(temporary), *stores(temporary)]:
        assert time.monotonic() < deadline_s, left
        time.sleep(0.1)


def left_in(folder: Path) -> list[Path]:
    """What is in it, but for the cache that torch keeps there for the next process."""
    return [path for path in folder.iterdir() if not path.name.startswith("torchinductor")]


def stores(folder: Path) -> list[str]:
    """Command lines of object stores that keep their data in the folder."""
    lines = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            lines.append(process.read_text().replace("\0", " "))
    return [line for line in lines if f"-dir={folder}" in line]


def test_plugin_gives_each_test_a_tenant_of_its_own_under_a_worker_of_xdist(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["fluxsmith.pytest_plugin"]')
    (tmp_path / "test_product.py").write_text(USERS_TESTS)
    options = ["-n", "1", "-p", "no:cacheprovider", f"--rootdir={tmp_path}"]
    command = [sys.executable, "-m", "pytest", *options, str(tmp_path)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "2 passed" in process.stdout, process.stdout + process.stderr


def test_importing_it_loads_neither_services_nor_torch_nor_pytest() -> None:
    code = "import fluxsmith.testing; print({'services', 'torch', 'pytest'} & set(sys.modules))"
    assert run(code, path=(ROOT / "clients",)).stdout.strip() == "set()"


ENTER = """
import fluxsmith.testing
try:
    fluxsmith.testing.Server().__enter__()
except fluxsmith.testing.CannotServe as error:
    print(error.reason, error)
"""


def test_wheel_alone_says_that_a_checkout_is_needed() -> None:
    told = run(ENTER, path=(ROOT / "clients",)).stdout
    assert told.startswith("CHECKOUT_MISSING")
    assert "pip install --editable" in told


def test_package_of_the_same_name_is_named(tmp_path: Path) -> None:
    (tmp_path / "services").mkdir()
    (tmp_path / "services/__init__.py").touch()
    told = run(ENTER, path=(tmp_path, ROOT / "clients", ROOT)).stdout
    assert str(tmp_path / "services") in told


def test_missing_package_is_named() -> None:
    code = f"sys.path.append({str(ROOT)!r}); sys.modules['minio'] = None" + ENTER
    told = run(code, path=(ROOT / "clients",)).stdout
    assert told.startswith("PACKAGE_MISSING")
    assert "'minio" in told


def test_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(CannotServe, match=str(tmp_path / "none")) as caught, Server(base_model=tmp_path / "none"):
        pass
    assert caught.value.reason == "NOT_STARTED"
