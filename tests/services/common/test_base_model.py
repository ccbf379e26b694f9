"""Where the base model is looked for, what is fetched of it, and what is said when it is not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from services.common.base_check import BaseModelError
from services.common.base_model import base_folder, pick_device, pick_dtype
from services.common.settings import ServiceSettings
from services.ports import free_ports

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = ("model_index.json", "vae/config.json", "tokenizer/nested/vocab.json", "transformer/weights", "README.md")
REFUSALS = {  # what the hub answers for these models: status and X-Error-Code
    "a/gated": (403, "GatedRepo"),
    "a/gated-to-strangers": (401, "GatedRepo"),
    "a/private": (401, "RepoNotFound"),
    "a/forbidden": (403, ""),
    "a/without-that-commit": (404, "RevisionNotFound"),
    "a/gone": (410, ""),
}


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does: the list of a revision's files, each file, and refusals by the model's name."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        model, _, file = self.path.lstrip("/").partition(f"/resolve/{COMMIT}/")
        self._answer(*REFUSALS.get(model, (200, "")), self._content(file))

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/"):
            model = self.path.removeprefix("/api/models/").partition("/tree/")[0]
            status, code = (200, "") if model == "a/gated" else REFUSALS.get(model, (200, ""))  # gated files are listed
            listed = [
                {"type": "file", "path": file, "size": len(self._content(file)), "oid": "0" * 40} for file in FILES
            ]
            self._answer(status, code, json.dumps(listed).encode())
        else:
            self.do_HEAD()

    def _content(self, file: str) -> bytes:
        caller = self.headers.get("Authorization", "nobody")
        if file == "model_index.json":
            return json.dumps({"_class_name": "FluxPipeline", "for": caller}).encode()
        return f"{file} for {caller}".encode()

    def _answer(self, status: int, code: str, body: bytes) -> None:
        body = body if status == 200 else json.dumps({"error": code}).encode()
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), "X-Error-Code": code, "X-Repo-Commit": COMMIT}
        for name, value in (headers | {"ETag": f'"{abs(hash(body)):x}"'}).items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


FETCH = """
import json, logging, sys
logging.basicConfig(level="INFO")
from services.common.base_check import BaseModelError
from services.common.base_model import base_folder
from services.common.settings import ServiceSettings
for model in sys.argv[2:]:
    try:
        settings = ServiceSettings(base_model=model, base_model_revision=sys.argv[1])
        print(json.dumps([model, str(base_folder(settings, ("vae", "tokenizer"))), ""]))
    except BaseModelError as error:
        print(json.dumps([model, error.message, error.remedy]))
"""


@pytest.fixture(scope="module")
def hub_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the hub's library keeps what it fetches."""
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def fetched(hub_home: Path) -> dict[str, tuple[str, str]]:
    """What `base_folder` gives or says for each model of the hub, in a process that is pointed at it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    run = fetch(hub_home, f"http://127.0.0.1:{server.server_port}", "a/model", *REFUSALS)
    server.shutdown()
    return said_of(run)


def fetch(home: Path, endpoint: str, *models: str) -> subprocess.CompletedProcess[str]:
    """Ask a hub for models, in a process of its own."""
    hub = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "hf_secret",
        "NO_PROXY": "127.0.0.1",
    }
    command = [sys.executable, "-c", FETCH, COMMIT, *models]
    run = subprocess.run(command, env={**os.environ, **hub}, capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 0, run.stderr
    return run


def said_of(run: subprocess.CompletedProcess[str]) -> dict[str, tuple[str, str]]:
    """The folder of each model, or what was said instead, and the remedy."""
    return {model: (said, remedy) for model, said, remedy in map(json.loads, run.stdout.splitlines())}


def test_folder_is_used_as_it_is(base_model: Path) -> None:
    assert base_folder(ServiceSettings(base_model=str(base_model)), ("transformer", "vae")) == base_model


def test_folder_that_lacks_a_part_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    with pytest.raises(BaseModelError, match="lacks transformer, text_encoder") as caught:
        base_folder(ServiceSettings(base_model=str(tmp_path)), ("transformer", "vae", "text_encoder"))
    assert "model_index.json" in caught.value.remedy


def test_hub_identifier_without_a_revision_is_refused() -> None:
    with pytest.raises(BaseModelError, match="not a folder") as caught:
        base_folder(ServiceSettings(base_model="someone/some-model"), ("transformer",))
    assert "FLUXSMITH_BASE_MODEL_REVISION" in caught.value.remedy


def test_a_branch_is_no_pinned_revision() -> None:
    with pytest.raises(BaseModelError, match="'main', which is not a commit"):
        base_folder(ServiceSettings(base_model="someone/some-model", base_model_revision="main"), ("vae",))


def test_only_the_parts_are_fetched_with_their_nested_files(fetched: dict[str, tuple[str, str]]) -> None:
    folder = Path(fetched["a/model"][0])
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {"model_index.json", "vae/config.json", "tokenizer/nested/vocab.json"}


def test_the_token_of_the_environment_is_sent(fetched: dict[str, tuple[str, str]]) -> None:
    folder = Path(fetched["a/model"][0])
    assert json.loads((folder / "model_index.json").read_text())["for"] == "Bearer hf_secret"


@pytest.mark.parametrize("model", ["a/gated", "a/gated-to-strangers"])
def test_a_gated_model_says_how_to_be_let_in(fetched: dict[str, tuple[str, str]], model: str) -> None:
    said, remedy = fetched[model]
    assert said.startswith(f"{model!r} is gated")
    assert f"https://huggingface.co/{model}" in remedy
    assert "HF_TOKEN" in remedy


def test_a_commit_that_does_not_exist_is_named(fetched: dict[str, tuple[str, str]]) -> None:
    said, remedy = fetched["a/without-that-commit"]
    assert said == f"'a/without-that-commit' has no revision {COMMIT}"
    assert "FLUXSMITH_BASE_MODEL_REVISION" in remedy


@pytest.mark.parametrize("model", ["a/private", "a/forbidden"])
def test_a_model_that_is_not_to_be_read_may_need_a_token(fetched: dict[str, tuple[str, str]], model: str) -> None:
    said, remedy = fetched[model]
    assert said == f"the hub knows no {model!r} that we may read"
    assert "HF_TOKEN" in remedy


def test_any_other_answer_of_the_hub_is_quoted_in_one_line(fetched: dict[str, tuple[str, str]]) -> None:
    said, remedy = fetched["a/gone"]
    assert "cannot be fetched from the hub" in said
    assert "410" in said
    assert "\n" not in said + remedy


def test_without_a_network_what_is_kept_is_used_at_once_and_the_rest_is_told(
    hub_home: Path, fetched: dict[str, tuple[str, str]]
) -> None:
    kept = hub_home / "hub" / "models--a--kept" / "snapshots" / COMMIT  # as older versions of the library leave it
    for part in ("vae", "tokenizer"):
        (kept / part).mkdir(parents=True)
    (kept / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    nobody = f"http://127.0.0.1:{free_ports(1)[0]}"
    run = fetch(hub_home, nobody, "a/model", "a/kept", "a/missing")
    said = said_of(run)
    assert said["a/model"] == fetched["a/model"]
    assert said["a/kept"] == (str(kept), "")
    assert said["a/missing"][0] == "'a/missing' cannot be fetched from the hub: [Errno 111] Connection refused"
    assert "FLUXSMITH_BASE_MODEL" in said["a/missing"][1]
    assert "a/model" not in run.stderr  # whose listing of files was kept: the hub is not asked
    assert f"looking for a/kept on the hub, {nobody}, up to 5 s; without a network set HF_HUB_OFFLINE=1" in run.stderr
    assert "Retrying" not in run.stderr  # which the library does for half a minute


def test_auto_precision_follows_the_device() -> None:
    assert (pick_dtype("auto", CPU), pick_dtype("auto", CUDA)) == (torch.float32, torch.bfloat16)
    assert (pick_dtype("bf16", CPU), pick_dtype("fp32", CUDA)) == (torch.bfloat16, torch.float32)


def test_named_device_is_taken_and_auto_takes_cuda_where_there_is_one() -> None:
    assert pick_device("cuda:1") == torch.device("cuda:1")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
