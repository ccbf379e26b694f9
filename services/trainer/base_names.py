"""Which FLUX.1 a base model is, as far as its configuration and its names tell: files say it in their headers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from services.common.base_check import FLUX_1
from services.common.base_names import CONFIG, INDEX, names_of_folder

_PIPELINE = "FluxPipeline"


class BaseKind(StrEnum):
    """A member of the family. A fine-tune counts as what it was made from, whose configuration it has."""

    DEV = "dev"
    SCHNELL = "schnell"
    KREA = "krea"
    UNKNOWN = "unknown"

    @property
    def architecture(self) -> str:
        """Its ModelSpec identifier as sd-scripts writes it; Krea's architecture is dev's."""
        known = {BaseKind.DEV: "flux-1-dev", BaseKind.KREA: "flux-1-dev", BaseKind.SCHNELL: "flux-1-schnell"}
        return known.get(self, "flux-1")


def kind_of(transformer_config: Mapping[str, Any], pipeline: str, names: Iterable[str]) -> BaseKind:
    """The kind of a base with this `transformer/config.json`, pipeline class (empty: not known) and names.

    Krea has dev's configuration to the letter, so only a name tells it apart; a Krea without it counts as dev.
    """
    if pipeline not in {"", _PIPELINE} or any(transformer_config.get(key) != size for key, size in FLUX_1.items()):
        return BaseKind.UNKNOWN
    if not transformer_config.get("guidance_embeds"):
        return BaseKind.SCHNELL
    return BaseKind.KREA if any("krea" in name.lower() for name in names) else BaseKind.DEV


def kind_of_folder(folder: Path, name: str) -> BaseKind:
    """The kind of the base in a folder of diffusers' layout that people call `name`."""
    index, transformer = (_json(folder / path) for path in (INDEX, CONFIG))
    return kind_of(transformer, str(index.get("_class_name", "")), names_of_folder(folder, name))


def _json(path: Path) -> dict[str, Any]:
    """An object of a file, empty where there is none."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
