"""Chromium as tests drive it, and pages of strangers for it to open."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.conftest import ROOT

# A name whose owner has it lead to the machine of whoever opens his page.
REBOUND = "rebound.example"


def chromium() -> str:
    """Path of the browser; without one the test is left out, or fails where browser tests are required."""
    found = subprocess.run([ROOT / "scripts/browser.sh"], capture_output=True, text=True, check=False)
    if found.returncode:
        leave_out = pytest.fail if os.environ.get("FLUXSMITH_BROWSER_TESTS") == "required" else pytest.skip
        leave_out(found.stderr.strip())
    return found.stdout.strip()


@contextmanager
def running_browser() -> Iterator[Browser]:
    """A browser of its own."""
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    resolved = f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1"
    path = chromium()
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=path, args=[*flags, resolved]) as browser,
    ):
        yield browser


@contextmanager
def stranger(html: str) -> Iterator[int]:
    """Port of a server on loopback that answers everything with one page."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = html.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is that of http.server
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()
