"""Make the client without an event loop from the one for asyncio; `--check` compares instead and fails on a difference.

The two differ in words only: `fluxsmith/X.py` is `fluxsmith/_async/X.py` without `async` and `await`. What differs in
more than words is in the two files `_runtime.py`.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "clients/fluxsmith"
BY_HAND = {"__init__.py", "_runtime.py"}
HEADER = "# Made by scripts/make_sync.py from {source}: change that file instead.\n"

WORDS = (
    (r"\basync (def|for|with)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\bAwaitable\[(\w+)\]", r"\1"),
    (r"\baclosing\b", "closing"),
    (r"\b__a(enter|exit)__\b", r"__\1__"),
    (r"\bAsync([A-Z]\w+)\b", r"\1"),
    (r"\bgrpc\.aio\.", "grpc."),
    (r"\bfluxsmith\._async\.", "fluxsmith."),
)


def make(source: Path) -> str:
    """Return the twin of a file, in the project's format."""
    text = HEADER.format(source=source.relative_to(ROOT)) + source.read_text()
    for word, other in WORDS:
        text = re.sub(word, other, text)
    name = str(TARGET / source.name)
    fixes = ["check", "--fix-only", "--unsafe-fixes", "--quiet", "--select=I,F401,UP028,C416"]
    for arguments in (fixes, ["format", "--quiet"]):
        command = ["ruff", *arguments, f"--stdin-filename={name}", "-"]
        text = subprocess.run(command, input=text, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return text


def main() -> int:
    """Write the twins, or with `--check` name those that are stale."""
    sources = sorted(path for path in (TARGET / "_async").glob("*.py") if path.name not in BY_HAND)
    made = {TARGET / source.name: make(source) for source in sources}
    stale = [path for path, text in made.items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is stale: run `python scripts/make_sync.py` and commit the result.")
        return len(stale)
    for path in stale:
        path.write_text(made[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
