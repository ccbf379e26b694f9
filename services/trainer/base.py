"""What a worker keeps for all its jobs: the base transformer, and what its pictures are sampled with."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from diffusers import FluxTransformer2DModel

from services.common.base_check import assumption
from services.common.base_model import base_folder
from services.common.base_names import name_of_folder
from services.common.settings import ServiceSettings
from services.trainer.base_names import BaseKind, kind_of_folder
from services.trainer.checkpoints.fingerprints import base_fingerprint
from services.trainer.transformer import load_transformer

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Base:
    """The resident transformer, the folder with scheduler_config.json of the same model, and its name for people.

    `fingerprint` tells its weights from others', `kind` the member of the family that it is.
    """

    transformer: FluxTransformer2DModel
    scheduler_folder: Path
    name: str
    fingerprint: str = ""
    kind: BaseKind = BaseKind.UNKNOWN


def load_base(settings: ServiceSettings) -> Base:
    """Load it; raises `BaseModelError`."""
    folder = base_folder(settings, ("transformer", "scheduler"))
    if assumed := assumption(folder):
        log.warning(assumed)
    name = settings.base_model if settings.base_model_revision else name_of_folder(folder)
    return Base(
        transformer=load_transformer(settings),
        scheduler_folder=folder / "scheduler",
        name=name,
        fingerprint=base_fingerprint(folder / "transformer"),
        kind=kind_of_folder(folder, name),
    )
