"""Where the base model lies, on which device it runs and in which precision: the same answers for both services."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from httpx2 import HTTPError
from huggingface_hub import constants, get_cached_repo_tree, get_session, snapshot_download
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
    XetDownloadError,
)

from services.common.base_check import BaseModelError, refuse_other_model, transformer_config
from services.common.base_names import COMMIT, CONFIG, INDEX

if TYPE_CHECKING:  # who loads a model without settings, as the benchmarks do, needs no pydantic-settings
    from services.common.settings import ServiceSettings

__all__ = [
    "BaseModelError",
    "base_folder",
    "configured_folder",
    "is_folder",
    "known_transformer",
    "pick_device",
    "pick_dtype",
]

log = logging.getLogger(__name__)

HUB_ANSWERS_S = 5.0  # its library tries for half a minute, and for over three minutes where nothing answers
HUB_ERRORS = (OSError, ValueError, HTTPError, EntryNotFoundError, RevisionResolutionError, XetDownloadError)


def base_folder(settings: ServiceSettings, parts: Iterable[str]) -> Path:
    """The folder of the base model, fetched from the hub only when FLUXSMITH_BASE_MODEL is no folder.

    Only `parts` (subfolders of diffusers' layout) are fetched, and all of them must be there. Raises `BaseModelError`
    also for a model that is no text-to-image model of FLUX.1, before anything large is fetched.
    """
    parts = tuple(parts)
    folder = configured_folder(settings)
    refuse_other_model(folder)
    if settings.base_model_revision and not is_folder(settings.base_model):
        folder = _fetched(settings.base_model, settings.base_model_revision, parts)
    missing = [part for part in parts if not (folder / part).is_dir()]
    if missing:
        raise BaseModelError(
            f"base model folder {folder} lacks {', '.join(missing)}",
            "Name the folder that holds model_index.json of a FLUX.1 model in diffusers' layout.",
        )
    return folder


def configured_folder(settings: ServiceSettings) -> Path:
    """The folder of the base model with at least what says which model it is; of the hub's nothing more is fetched.

    Raises `BaseModelError` where there is none.
    """
    if is_folder(settings.base_model):
        return Path(settings.base_model)
    if not settings.base_model_revision:
        raise BaseModelError(
            f"FLUXSMITH_BASE_MODEL is {settings.base_model!r}, which is not a folder",
            "Name a folder in diffusers' layout, or a hub identifier together with FLUXSMITH_BASE_MODEL_REVISION.",
        )
    return _fetched(settings.base_model, settings.base_model_revision, ())


def known_transformer(settings: ServiceSettings) -> dict[str, Any] | None:
    """The transformer's configuration for a server, whose workers may be the only ones to have the base: then None.

    Raises `BaseModelError` for a base that is there and is no text-to-image model of FLUX.1.
    """
    try:
        folder = configured_folder(settings)
    except BaseModelError as error:
        log.warning("what depends on the base model's layers is left to the workers to check: %s", error.line)
        return None
    refuse_other_model(folder)
    return transformer_config(folder)


def is_folder(name: str) -> bool:
    """Whether there is a folder of this name; no for what cannot be a name."""
    try:
        return Path(name).is_dir()
    except OSError:
        return False


def _fetched(identifier: str, revision: str, parts: Iterable[str]) -> Path:
    if not COMMIT.fullmatch(revision):
        raise BaseModelError(
            f"FLUXSMITH_BASE_MODEL_REVISION is {revision!r}, which is not a commit",
            "Give the 40 hexadecimal digits of a commit: what a branch or tag names may change between two starts.",
        )
    patterns = [INDEX, CONFIG, *(f"{part}/*" for part in parts)]  # `*` matches across folders here
    fetch = partial(snapshot_download, identifier, revision=revision, allow_patterns=patterns)
    try:
        get_cached_repo_tree(identifier, revision=revision)  # by which the next one knows whether anything is missing
        return Path(fetch(local_files_only=True))
    except (CachedRepoTreeNotFoundError, *HUB_ERRORS):
        silence = None if constants.HF_HUB_OFFLINE else _silence_of_hub(identifier)
    try:
        return Path(fetch(local_files_only=silence is not None))
    except HUB_ERRORS as error:
        raise _hub_error(identifier, revision, silence or error) from error


def _silence_of_hub(identifier: str) -> Exception | None:
    """Why the hub cannot be asked; None where it answers, whatever it says."""
    log.info(
        "looking for %s on the hub, %s, up to %.0f s; without a network set HF_HUB_OFFLINE=1 to use what was fetched "
        "before, or name the model's folder with FLUXSMITH_BASE_MODEL",
        identifier,
        constants.ENDPOINT,
        HUB_ANSWERS_S,
    )
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_ANSWERS_S)
    except HTTPError as error:
        log.warning("the hub does not answer (%s); what was fetched before is used, if it is there", _said(error))
        return error
    log.info("fetching what is missing of %s from the hub", identifier)
    return None


def _hub_error(identifier: str, revision: str, error: Exception) -> BaseModelError:
    """What the hub's answer means, and what to do. An error that wraps the answer stands for the answer."""
    answer = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error
    page = f"https://huggingface.co/{identifier}"
    if isinstance(answer, GatedRepoError):
        return BaseModelError(
            f"{identifier!r} is gated, and the hub did not let us in",
            f"Accept its licence on {page} and set HF_TOKEN to a token of that account with read access.",
        )
    if isinstance(answer, RevisionNotFoundError):
        return BaseModelError(
            f"{identifier!r} has no revision {revision}",
            f"Set FLUXSMITH_BASE_MODEL_REVISION to a commit listed on {page}/commits/main.",
        )
    if isinstance(answer, RepositoryNotFoundError) or _status(answer) in (401, 403):
        return BaseModelError(
            f"the hub knows no {identifier!r} that we may read",
            "Check the name; if the model is private, set HF_TOKEN to a token that may read it.",
        )
    return BaseModelError(
        f"{identifier!r} cannot be fetched from the hub: {_said(answer)}",
        "Check the name, the network and the access token (HF_TOKEN), and set HF_HUB_OFFLINE=0. Without a network name "
        "the model's folder with FLUXSMITH_BASE_MODEL.",
    )


def _said(error: BaseException) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]


def _status(error: BaseException) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


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
