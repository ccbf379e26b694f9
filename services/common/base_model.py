"""Where the base model lies, on which device it runs and in which precision: the same answers for both services."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub import snapshot_download

from services.common.errors import ServiceError

if TYPE_CHECKING:  # who loads a model without settings, as the benchmarks do, needs no pydantic-settings
    from services.common.settings import ServiceSettings


class BaseModelError(ServiceError):
    """The base model cannot be loaded from where the settings say."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message, reason="BASE_MODEL_INVALID", remedy=remedy)


def base_folder(settings: ServiceSettings, parts: Iterable[str]) -> Path:
    """The folder of the base model, fetched from the hub only when FLUXSMITH_BASE_MODEL is no folder.

    Only `parts` (subfolders of diffusers' layout) are fetched, and all of them must be there.
    """
    folder = Path(settings.base_model)
    if not folder.is_dir():
        if not settings.base_model_revision:
            raise BaseModelError(
                f"FLUXSMITH_BASE_MODEL is {settings.base_model!r}, which is no folder",
                "Name a folder in diffusers' layout, or a hub identifier together with FLUXSMITH_BASE_MODEL_REVISION.",
            )
        folder = _fetched(settings.base_model, settings.base_model_revision, parts)
    missing = [part for part in parts if not (folder / part).is_dir()]
    if missing:
        raise BaseModelError(
            f"base model folder {folder} lacks {', '.join(missing)}",
            "Name the folder that holds model_index.json of a FLUX.1 model in diffusers' layout.",
        )
    return folder


def _fetched(identifier: str, revision: str, parts: Iterable[str]) -> Path:
    patterns = ["model_index.json", *(f"{part}/*" for part in parts)]
    try:
        return Path(snapshot_download(identifier, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise BaseModelError(
            f"{identifier!r} cannot be fetched from the hub: {str(error).splitlines()[0]}",
            "Check the name, the revision and the access token (HF_TOKEN), and set HF_HUB_OFFLINE=0.",
        ) from error


def pick_device(name: str) -> torch.device:
    """The device that a setting names; `auto` takes CUDA where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision that a setting names; `auto` means bf16 on CUDA and fp32 on the CPU."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[name]
