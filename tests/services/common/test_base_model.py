"""Where the base model is looked for, and what is said when it is not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from services.common.base_model import BaseModelError, base_folder, pick_device, pick_dtype
from services.common.settings import ServiceSettings

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_folder_is_used_as_it_is(base_model: Path) -> None:
    assert base_folder(ServiceSettings(base_model=str(base_model)), ("transformer", "vae")) == base_model


def test_folder_that_lacks_a_part_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    with pytest.raises(BaseModelError, match="lacks transformer, text_encoder") as caught:
        base_folder(ServiceSettings(base_model=str(tmp_path)), ("transformer", "vae", "text_encoder"))
    assert "model_index.json" in caught.value.remedy


def test_hub_identifier_without_a_revision_is_refused() -> None:
    with pytest.raises(BaseModelError, match="no folder") as caught:
        base_folder(ServiceSettings(base_model="someone/some-model"), ("transformer",))
    assert "FLUXSMITH_BASE_MODEL_REVISION" in caught.value.remedy


def test_auto_precision_follows_the_device() -> None:
    assert (pick_dtype("auto", CPU), pick_dtype("auto", CUDA)) == (torch.float32, torch.bfloat16)
    assert (pick_dtype("bf16", CPU), pick_dtype("fp32", CUDA)) == (torch.bfloat16, torch.float32)


def test_named_device_is_taken_and_auto_takes_cuda_where_there_is_one() -> None:
    assert pick_device("cuda:1") == torch.device("cuda:1")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
