"""Adapters to begin with: looked at, then put whole where the trainer says, or an error that says what to do."""

import hashlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import fluxsmith
import pytest
from fluxsmith._adapter_upload import put_file
from fluxsmith.errors import InvalidRequest, Unavailable, UploadFailed
from fluxsmith.v1 import trainer_pb2

from tests.clients.recording import Recorder

HEADER = b'{"__metadata__":{}}'
ADAPTER = len(HEADER).to_bytes(8, "little") + HEADER + bytes(100_000)


class PutHandler(BaseHTTPRequestHandler):
    """Keeps what is put under any path but /refused, which it answers with 403."""

    bodies: ClassVar[list[bytes]] = []

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        refused = self.path == "/refused"
        if not refused:
            self.bodies.append(body)
        self.send_response(403 if refused else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def put_url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), PutHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    path = tmp_path / "lora.safetensors"
    path.write_bytes(ADAPTER)
    return path


def test_adapter_is_put_whole_and_its_address_returned(
    client: fluxsmith.Client, recorder: Recorder, put_url: str, adapter: Path
) -> None:
    recorder.store_url = f"{put_url}/file"
    assert client.upload_adapter(str(adapter)) == "s3://b/adapter"
    [request] = recorder.asked(trainer_pb2.CreateAdapterUploadRequest)
    assert request.content_digest == hashlib.sha256(ADAPTER).hexdigest()
    assert PutHandler.bodies[-1] == ADAPTER


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GGUF and more than eight bytes",
        ADAPTER[:8],
        ADAPTER[:20],
        bytes(8) + b"hello",
        (2**40).to_bytes(8, "little") + HEADER,
    ],
)
def test_file_that_is_no_adapter_is_not_sent(
    client: fluxsmith.Client, recorder: Recorder, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(InvalidRequest, match="is not a safetensors file") as caught:
        client.upload_adapter(path)
    assert (caught.value.reason, "damaged" in caught.value.remedy) == ("ADAPTER_INVALID", True)
    assert not recorder.requests


@pytest.mark.parametrize("name", ["nowhere.safetensors", "."])
def test_adapter_that_cannot_be_read_is_told(client: fluxsmith.Client, tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot be read") as caught:
        client.upload_adapter(tmp_path / name)
    assert caught.value.reason == "ADAPTER_UNREADABLE"


def test_adapter_that_one_put_cannot_hold_is_told(client: fluxsmith.Client, adapter: Path) -> None:
    with adapter.open("r+b") as file:
        file.truncate(5 * 1024**3 + 1)  # a hole, not bytes on disk
    with pytest.raises(InvalidRequest, match="5368709120 can be uploaded") as caught:
        client.upload_adapter(adapter)
    assert caught.value.reason == "ADAPTER_TOO_LARGE"


def test_refusal_of_the_store_is_told(put_url: str, adapter: Path) -> None:
    with pytest.raises(UploadFailed, match="403") as caught:
        put_file(f"{put_url}/refused", adapter)
    assert caught.value.reason == "UPLOAD_REFUSED"


def test_store_that_is_away_is_named(adapter: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(Unavailable, match=f"{address}.*upload again") as caught:
            put_file(f"http://{address}/file", adapter)
    assert caught.value.reason == "STORE_UNREACHABLE"
