"""What a worker keeps for all its jobs: the base transformer, and what its pictures are sampled with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diffusers import FluxTransformer2DModel

from services.common.base_model import base_folder
from services.common.settings import ServiceSettings
from services.trainer.transformer import load_transformer


@dataclass(frozen=True, kw_only=True)
class Base:
    """The resident transformer, and the folder with scheduler_config.json of the same model."""

    transformer: FluxTransformer2DModel
    scheduler_folder: Path


def load_base(settings: ServiceSettings) -> Base:
    """Load it; raises `BaseModelError`."""
    folder = base_folder(settings, ("transformer", "scheduler"))
    return Base(transformer=load_transformer(settings), scheduler_folder=folder / "scheduler")
