"""A base is named by what its configuration and its names tell, and by nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from services.common.base_names import name_of_folder
from services.common.settings import ServiceSettings
from services.stack import ROOT
from services.trainer.base import load_base
from services.trainer.base_names import BaseKind, kind_of, kind_of_folder
from tests.services.trainer.adapters.test_targets import FLUX_DEV

SCHNELL = {**FLUX_DEV, "guidance_embeds": False}


@pytest.mark.parametrize(
    ("config", "pipeline", "name", "kind", "architecture"),
    [
        (FLUX_DEV, "FluxPipeline", "FLUX.1-dev", BaseKind.DEV, "flux-1-dev"),
        (FLUX_DEV, "", "my own finetune", BaseKind.DEV, "flux-1-dev"),
        (SCHNELL, "FluxPipeline", "base", BaseKind.SCHNELL, "flux-1-schnell"),
        (SCHNELL, "FluxPipeline", "krea-schnell", BaseKind.SCHNELL, "flux-1-schnell"),
        (FLUX_DEV, "FluxPipeline", "FLUX.1-Krea-dev", BaseKind.KREA, "flux-1-dev"),
        (FLUX_DEV, "FluxKontextPipeline", "FLUX.1-Kontext-dev", BaseKind.UNKNOWN, "flux-1"),
        ({**FLUX_DEV, "in_channels": 384}, "", "FLUX.1-Fill-dev", BaseKind.UNKNOWN, "flux-1"),
        ({}, "", "", BaseKind.UNKNOWN, "flux-1"),
    ],
)
def test_kind_follows_from_configuration_and_name(
    config: dict[str, Any], pipeline: str, name: str, kind: BaseKind, architecture: str
) -> None:
    assert kind_of(config, pipeline, [name]) is kind
    assert kind.architecture == architecture


def folder_of(root: Path, config: dict[str, Any], origin: str = "") -> Path:
    """A base model's folder, as far as its kind is read from it."""
    (root / "transformer").mkdir(parents=True)
    (root / "transformer" / "config.json").write_text(json.dumps({**config, "_name_or_path": origin}))
    return root


def test_name_of_a_folder_above_says_nothing(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "krea" / "flux", FLUX_DEV, "/home/krea/models/dev/")
    assert kind_of_folder(folder, "flux") is BaseKind.DEV


def test_krea_is_known_by_where_its_weights_came_from(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "base", FLUX_DEV, "black-forest-labs/FLUX.1-Krea-dev")
    assert kind_of_folder(folder, "base") is BaseKind.KREA


def test_snapshot_of_the_hub_has_the_hubs_name(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--black-forest-labs--FLUX.1-Krea-dev" / "snapshots" / ("0" * 40)
    folder = folder_of(snapshot, FLUX_DEV)
    assert name_of_folder(folder) == "black-forest-labs/FLUX.1-Krea-dev"
    assert kind_of_folder(folder, name_of_folder(folder)) is BaseKind.KREA


def test_base_of_other_sizes_is_of_no_known_kind(service_settings: ServiceSettings) -> None:
    base = load_base(service_settings)
    assert (base.name, base.kind) == ("flux-tiny", BaseKind.UNKNOWN)
    assert kind_of_folder(ROOT / "assets" / "flux-tiny", "krea") is BaseKind.UNKNOWN
