"""Downloads: a file appears under its name whole and checked, or not at all; what has come is not asked for again."""

import hashlib
import os
import re
import socket
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from fluxsmith import Deadlines, RetryPolicy
from fluxsmith._download import download, part_of
from fluxsmith._fetch import Located, fetch
from fluxsmith.errors import DownloadFailed, InvalidRequest, Unavailable

from tests.faults.proxy import FaultProxy, Faults

CONTENT = bytes(range(256)) * 4000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
OTHER = CONTENT[::-1]


class FileHandler(BaseHTTPRequestHandler):
    """Answers /file and /other by ranges, /whole without them, /short with too little, and all else with 403."""

    ranges: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "")
        self.ranges.append(wanted)
        content = OTHER if self.path == "/other" else CONTENT
        begin = int(re.sub(r"\D", "", wanted) or 0) if self.path in {"/file", "/other"} else 0
        known = self.path in {"/file", "/other", "/whole", "/short"}
        self.send_response((206 if begin else 200) if known else 403)
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        self.wfile.write(content[:100] if self.path == "/short" else content[begin:])

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def store_url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), FileHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where the file goes, with an older one in its place."""
    target = tmp_path / "lora.safetensors"
    target.write_bytes(b"an older one")
    return target


def get(url: str, target: Path, digest: str = DIGEST) -> None:
    download(threading.Event(), url, target, size_bytes=len(CONTENT), digest=digest)


def test_file_is_written_whole(store_url: str, target: Path) -> None:
    get(f"{store_url}/file", target)
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]


def test_file_has_the_rights_of_any_new_file(store_url: str, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        get(f"{store_url}/file", tmp_path / "lora.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "lora.safetensors").stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("path", "digest", "reason"), [("/file", "0" * 64, "DIGEST_MISMATCH"), ("/refused", DIGEST, "DOWNLOAD_REFUSED")]
)
def test_bad_answer_leaves_the_older_file(store_url: str, target: Path, path: str, digest: str, reason: str) -> None:
    with pytest.raises(DownloadFailed) as caught:
        get(f"{store_url}{path}", target, digest)
    assert caught.value.reason == reason
    assert target.read_bytes() == b"an older one"
    assert list(target.parent.iterdir()) == [target]


def test_what_has_come_before_a_break_is_kept_and_only_the_rest_asked_for(store_url: str, target: Path) -> None:
    with pytest.raises(Unavailable):
        get(f"{store_url}/short", target)
    assert target.read_bytes() == b"an older one"
    assert part_of(target, DIGEST).read_bytes() == CONTENT[:100]
    get(f"{store_url}/file", target)
    assert FileHandler.ranges[-1] == "bytes=100-"
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("left", [b"damaged", CONTENT[:-1] + b"x", CONTENT + b"more"])
def test_damaged_part_is_fetched_anew(store_url: str, target: Path, left: bytes) -> None:
    part_of(target, DIGEST).write_bytes(left)
    get(f"{store_url}/file", target)
    assert target.read_bytes() == CONTENT


def test_store_without_ranges_begins_again(store_url: str, target: Path) -> None:
    part_of(target, DIGEST).write_bytes(CONTENT[:100])
    get(f"{store_url}/whole", target)
    assert target.read_bytes() == CONTENT


def test_download_that_is_stopped_leaves_no_half_file(store_url: str, target: Path) -> None:
    stop = threading.Event()
    stop.set()
    download(stop, f"{store_url}/file", target, size_bytes=len(CONTENT), digest=DIGEST)
    assert target.read_bytes() == b"an older one"


def test_breaks_on_the_way_cost_no_byte_twice(store_url: str, target: Path) -> None:
    with FaultProxy(upstream=store_url.removeprefix("http://")) as proxy:
        proxy.faults = Faults(cut_down=1.0, cut_after_bytes=300_000, times=3)
        file = Located(url=f"http://{proxy.endpoint}/file", size_bytes=len(CONTENT), content_digest=DIGEST)
        fetch(lambda: file, target, deadlines=Deadlines(), retry=RetryPolicy(first_delay_s=0.01))
    assert FileHandler.ranges[-4:] == ["", "bytes=300000-", "bytes=600000-", "bytes=900000-"]
    assert target.read_bytes() == CONTENT


def test_store_that_is_away_is_named(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(Unavailable, match=address) as caught:
            get(f"http://{address}/file", tmp_path / "x")
    assert caught.value.reason == "STORE_UNREACHABLE"


def test_target_that_cannot_be_written_is_named(store_url: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "file")  # as /dev/stdout is one to a file, when it goes into one
    for target in ("nowhere/x", "file/x", "pipe", "link", ".", "x" * 256, "a\0b"):
        with pytest.raises(InvalidRequest, match="cannot be written") as caught:
            get(f"{store_url}/file", tmp_path / target)
        assert caught.value.reason == "TARGET_UNWRITABLE"
    with pytest.raises(InvalidRequest, match="no name for a file"):
        get(f"{store_url}/file", Path())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "pipe"]
    assert (tmp_path / "link").is_symlink()
    assert not (tmp_path / "file").read_bytes()
    assert (tmp_path / "pipe").is_fifo()


def test_part_that_is_a_link_is_not_followed(store_url: str, target: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    part_of(target, DIGEST).symlink_to(precious)
    with pytest.raises(InvalidRequest, match="cannot be written"):
        get(f"{store_url}/file", target)
    assert precious.read_bytes() == b"precious"


def test_many_downloads_to_one_target_at_a_time_all_succeed(store_url: str, target: Path) -> None:
    def get_one(number: int) -> None:
        if number % 4:
            get(f"{store_url}/file", target)
        else:
            get(f"{store_url}/other", target, hashlib.sha256(OTHER).hexdigest())

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(get_one, range(80)))
    assert target.read_bytes() in {CONTENT, OTHER}
    assert list(target.parent.iterdir()) == [target]


def test_target_may_have_the_longest_name_there_is(store_url: str, tmp_path: Path) -> None:
    get(f"{store_url}/file", tmp_path / ("x" * 255))
    assert (tmp_path / ("x" * 255)).read_bytes() == CONTENT
