"""The page at /docs has all that it needs in the project, as it came from its makers."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import gateway
from fastapi.testclient import TestClient
from gateway.app import create_app
from gateway.settings import GatewaySettings

FOLDER = Path(gateway.__file__).parent / "swagger_ui"


def test_files_of_swagger_ui_are_those_of_the_version_that_is_named() -> None:
    lines = (FOLDER / "SHA256SUMS").read_text().splitlines()
    listed = {name: digest for digest, name in map(str.split, lines)}
    assert {"LICENSE", "NOTICE", "swagger-ui-bundle.js", "swagger-ui.css"} <= set(listed)
    assert set(listed) == {path.name for path in FOLDER.iterdir()} - {"README.md", "SHA256SUMS"}
    assert {name: hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() for name in listed} == listed
    version = re.search(r"swagger-ui-dist` (\d+\.\d+\.\d+)", (FOLDER / "README.md").read_text())
    assert version
    assert version[1].encode() in (FOLDER / "swagger-ui-bundle.js").read_bytes()


def test_the_page_names_only_what_the_gateway_serves_and_has_no_script_in_it() -> None:
    with TestClient(create_app(GatewaySettings())) as web:
        page = web.get("/docs")
        named = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert len(named) == 4
        assert {web.get(f"/{one}").status_code for one in named} == {200}
        assert not re.search(r"<script(?![^>]*src)|<style|\son\w+=", page.text)
        assert "default-src 'none'; script-src 'self';" in page.headers["Content-Security-Policy"]
        assert [web.get(path).status_code for path in ("/docs/nonesuch", "/docs/..%2fapp.py", "/redoc")] == [404] * 3
