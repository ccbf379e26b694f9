"""The example of use in the report, run as it stands: it loads the file that the job has published."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from PIL import Image
from torch import Tensor

from services.trainer.adapters.files import peft_file
from services.trainer.config import TrainConfig
from services.trainer.previews import Size
from services.trainer.results.example import Sampling, base_of, example_of_use
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
def test_the_example_loads_the_adapter_and_draws_as_it_stands(
    kind: str,
    transformer: FluxTransformer2DModel,
    base_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = job(adapter_type=kind, preview_sampling_steps=2, preview_prompts=('it\'s a "cat"',))
    adapter, _ = trained(transformer, config)
    (tmp_path / "lora.safetensors").write_bytes(peft_file(adapter, config, {}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    sampling = Sampling(base=str(base_model)).at(Size(height_px=48, width_px=64), text_tokens=64)
    done = DONE.model_copy(update={"config": config})
    names: dict[str, FluxPipeline] = {}
    exec(Page(render_report(done, History(), artifacts=[LORA], sampling=sampling)).code(), names)  # noqa: S102
    assert len(learnt(names["pipe"].transformer)) > 50
    assert all(bool(tensor.any()) for tensor in learnt(names["pipe"].transformer))
    assert Image.open("picture.png").size == (64, 48)


@pytest.mark.parametrize(
    ("name", "folder", "address", "base", "revision"),
    [
        ("flux-tiny", "/models/flux-tiny", "127.0.0.1:7402", "/models/flux-tiny", ""),
        ("flux-tiny", "/models/flux-tiny", "0.0.0.0:7402", "flux-tiny", ""),
        ("FLUX.1-dev", "/models/FLUX.1-dev", "0.0.0.0:7402", "black-forest-labs/FLUX.1-dev", ""),
        ("FLUX.1-dev", "/models/FLUX.1-dev", "[::1]:7402", "/models/FLUX.1-dev", ""),
        ("me/flux", f"/cache/snapshots/{'0a' * 20}", "127.0.0.1:7402", "me/flux", "0a" * 20),
    ],
)
def test_the_base_is_named_as_the_reader_can_load_it(
    name: str, folder: str, address: str, base: str, revision: str
) -> None:
    assert base_of(name, Path(folder), address=address) == (base, revision)
    code = example_of_use(TrainConfig(), "lora.safetensors", Sampling(base=base, revision=revision))
    assert f"base = {base!r}" in code
    assert ("revision=" in code) is bool(revision)
