"""The example of a product's backend: a LoRA per user, told by webhook, and nothing lost by a restart."""

from __future__ import annotations

import base64
import json
import queue
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fluxsmith
import pytest
from examples.product_backend import TENANT, create_app
from fastapi.testclient import TestClient

from services.stack import Stack
from tests.integration.conftest import drawing

Calls = queue.Queue[dict[str, Any]]


@pytest.fixture
def webhook() -> Iterator[tuple[str, Calls]]:
    """An address, and what is posted to it."""
    calls: Calls = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            calls.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/done", calls
        server.shutdown()


@pytest.fixture(autouse=True)
def addresses(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXSMITH_ENCODER", stack.encoder_address)
    monkeypatch.setenv("FLUXSMITH_TRAINER", stack.trainer_address)


PICTURES = [{"image": base64.b64encode(drawing(number)).decode(), "caption": "a circle"} for number in range(3)]


def test_each_user_gets_a_file_when_the_webhook_says_so(webhook: tuple[str, Calls], tmp_path: Path) -> None:
    address, calls = webhook
    with TestClient(create_app(tmp_path, address)) as web:
        jobs = {user: web.post(f"/users/{user}/lora", json=PICTURES).json()["job_id"] for user in ("ada", "ben")}
        told = [calls.get(timeout=60) for _ in jobs]
        assert {(one["user_id"], one["job_id"], one["state"]) for one in told} == {
            (user, job_id, "ready") for user, job_id in jobs.items()
        }
        assert len(web.get("/users/ada/lora").content) > 10_000
        assert web.get("/users/eve/lora").status_code == 404


def test_a_backend_that_was_away_goes_on_with_its_jobs(webhook: tuple[str, Calls], tmp_path: Path) -> None:
    address, calls = webhook
    with fluxsmith.Client(tenant=TENANT) as client:  # what a backend did that is gone now
        dataset = client.datasets.create_from([(drawing(4), "a circle")])
        job = client.train(dataset, user_id="cleo", epochs=1)
    with TestClient(create_app(tmp_path, address)) as web:
        while (told := calls.get(timeout=60))["job_id"] != job.id:
            pass  # those of the test above, whose files are in another folder
        assert told["state"] == "ready"
        assert web.get("/users/cleo/lora").status_code == 200


def test_pictures_that_are_none_are_refused(tmp_path: Path) -> None:
    with TestClient(create_app(tmp_path)) as web:
        bad = [{"image": base64.b64encode(b"none").decode(), "caption": "a circle"}]
        answer = web.post("/users/dan/lora", json=bad)
        assert answer.status_code == 422
        assert "Give PNG, JPEG" in answer.json()["detail"]
