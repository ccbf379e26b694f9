"""What a base model is called: by its folder, by the hub, and by where its files say that they came from."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

COMMIT = re.compile(r"[0-9a-f]{40}")
INDEX, CONFIG = "model_index.json", "transformer/config.json"
LARGEST_JSON_BYTES = 1 << 20


def names_of_folder(folder: Path, name: str = "") -> list[str]:
    """All names of the base in a folder of diffusers' layout that people call `name`, as far as there are any.

    Of a path its end: a folder above may be called anything.
    """
    origins = [_json(folder / path).get("_name_or_path", "") for path in (INDEX, CONFIG)]
    paths = [name or name_of_folder(folder), *(origin for origin in origins if isinstance(origin, str))]
    ends = [re.split(r"[/\\]", path.rstrip("/\\"))[-1] for path in paths]
    return [end for end in ends if end]


def name_of_folder(folder: Path) -> str:
    """What to call the base in a folder: its name, or the hub's where it is a snapshot in the hub's cache."""
    path = folder.resolve()
    if COMMIT.fullmatch(path.name) and path.parent.name == "snapshots":
        return path.parent.parent.name.removeprefix("models--").replace("--", "/")
    return path.name


def _json(path: Path) -> dict[str, Any]:
    """An object of a file, empty where there is none."""
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(LARGEST_JSON_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
