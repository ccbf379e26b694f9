"""A gateway in a process of its own, with small limits, in front of the stack."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from services.ports import free_ports
from services.stack import Stack
from tests.integration.conftest import drawing

MAX_BODY_BYTES = 200_000
MAX_SAMPLES = 20


@pytest.fixture(scope="session")
def gateway(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a gateway with small limits."""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    environment = {
        **os.environ,
        "FLUXSMITH_ENCODER": stack.encoder_address,
        "FLUXSMITH_TRAINER": stack.trainer_address,
        "FLUXSMITH_GATEWAY_ADDRESS": address,
        "FLUXSMITH_GATEWAY_MAX_BODY_BYTES": str(MAX_BODY_BYTES),
        "FLUXSMITH_GATEWAY_MAX_SAMPLES": str(MAX_SAMPLES),
        "FLUXSMITH_GATEWAY_STOP_S": "1",
    }
    log = tmp_path_factory.mktemp("gateway") / "log"
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-m", "gateway"], env=environment, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + 30
        while not answers(f"http://{address}/healthz"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(20)
    assert "Traceback" not in log.read_text()  # whatever the tests below asked, nothing was unforeseen


def answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        time.sleep(0.1)
        return False


@pytest.fixture
def web(gateway: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway, timeout=120) as web:
        yield web


def body(*, count: int = 1, user_id: int | str = 123, **training_params: Any) -> dict[str, Any]:
    """What the document's endpoint takes; every `count` makes other pictures."""
    samples = [
        {"image": base64.b64encode(drawing(number, shade=count)).decode(), "description": f"a circle {number}"}
        for number in range(count)
    ]
    return {"train_data": samples, "user_id": user_id, "training_params": {"rank": 4, **training_params}}
