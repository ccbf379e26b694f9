"""Downloads: a file appears under its name whole and checked, or not at all."""

import hashlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fluxsmith._download import download
from fluxsmith.errors import DownloadFailed, InvalidRequest, Unavailable

CONTENT = b"LoRA" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class FileHandler(BaseHTTPRequestHandler):
    """Answers /file whole, /short with less than it announced, and all else with 403."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path in {"/file", "/short"} else 403)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT if self.path == "/file" else CONTENT[:100])

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def store_url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), FileHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_file_is_written_whole(store_url: str, tmp_path: Path) -> None:
    target = tmp_path / "lora.safetensors"
    target.write_bytes(b"an older one")
    download(f"{store_url}/file", target, size_bytes=len(CONTENT), digest=DIGEST)
    assert target.read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("path", "digest", "error"),
    [
        ("/file", "0" * 64, DownloadFailed),
        ("/short", DIGEST, (DownloadFailed, Unavailable)),
        ("/refused", DIGEST, DownloadFailed),
    ],
)
def test_bad_answer_leaves_the_older_file(
    store_url: str, tmp_path: Path, path: str, digest: str, error: type[Exception]
) -> None:
    target = tmp_path / "lora.safetensors"
    target.write_bytes(b"an older one")
    with pytest.raises(error):
        download(f"{store_url}{path}", target, size_bytes=len(CONTENT), digest=digest)
    assert target.read_bytes() == b"an older one"
    assert list(tmp_path.iterdir()) == [target]


def test_store_that_is_away_is_named(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(Unavailable, match=address):
            download(f"http://{address}/file", tmp_path / "x", size_bytes=1, digest="")


def test_target_that_cannot_be_written_is_named(store_url: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="cannot be written"):
        download(f"{store_url}/file", tmp_path / "nowhere" / "x", size_bytes=len(CONTENT), digest=DIGEST)
