"""The example of use in the report, run as it stands: it loads the file that the job has published."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import Tensor

from services.trainer.adapters.files import peft_file
from services.trainer.results.history import History
from services.trainer.results.report import render_report
from tests.services.trainer.adapters.test_adapter import job
from tests.services.trainer.adapters.test_files import trained
from tests.services.trainer.results.test_report import DONE, LORA, Page


def learnt(transformer: torch.nn.Module) -> list[Tensor]:
    """What adapters have brought into a model."""
    kinds = (".lora_", ".lokr_", ".hada_")
    return [tensor for name, tensor in transformer.named_parameters() if any(kind in name for kind in kinds)]


@pytest.mark.parametrize("kind", ["LORA", "DORA", "LOKR", "LOHA"])
def test_the_example_loads_the_adapter(
    kind: str,
    transformer: FluxTransformer2DModel,
    base_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = job(adapter_type=kind)
    adapter, _ = trained(transformer, config)
    (tmp_path / "lora.safetensors").write_bytes(peft_file(adapter, config, {}))
    monkeypatch.chdir(tmp_path)
    done = DONE.model_copy(update={"config": config})
    code = Page(render_report(done, History(), artifacts=[LORA], base_model=str(base_model.resolve()))).code()
    names: dict[str, FluxPipeline] = {}
    exec(code.replace('.to("cuda")', "").partition("image = ")[0], names)  # noqa: S102 - what a reader does with it
    assert "# the folder or hub identifier of the base model" in code
    assert len(learnt(names["pipe"].transformer)) > 50
    assert all(bool(tensor.any()) for tensor in learnt(names["pipe"].transformer))
