"""A base of another class is refused by every process with the reason and what is supported; no folder is a crash."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services import doctor
from services.common.base_check import BaseModelError, assumption, refuse_other_model, transformer_config
from services.common.settings import ServiceSettings, StoreSettings
from services.encoder.models import load_models
from services.encoder.settings import EncoderSettings
from services.trainer import app
from services.trainer.base import load_base
from services.trainer.settings import TrainerSettings

FLUX = {"_class_name": "FluxTransformer2DModel", "in_channels": 64, "out_channels": None, "guidance_embeds": True}
PROCESSES: dict[str, Callable[[ServiceSettings], object]] = {
    "server": lambda settings: app.run(settings, TrainerSettings(), StoreSettings()),
    "worker": load_base,
    "encoder": lambda settings: load_models(settings, EncoderSettings()),
}
OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "Kontext": ({"_class_name": "FluxKontextPipeline"}, FLUX, "FLUX.1 Kontext, which edits pictures"),
    "Fill": ({"_class_name": "FluxFillPipeline"}, FLUX | {"in_channels": 384, "out_channels": 64}, "FLUX.1 Fill"),
    "Fill by channels": ({}, FLUX | {"in_channels": 384, "out_channels": 64}, "FLUX.1 Fill: its transformer takes 384"),
    "Canny": ({}, FLUX | {"in_channels": 128, "out_channels": 64}, "FLUX.1 Canny or Depth"),
    "Chroma": ({"_class_name": "ChromaPipeline"}, {"_class_name": "ChromaTransformer2DModel"}, "Chroma"),
    "Chroma alone": ({}, {"_class_name": "ChromaTransformer2DModel"}, "Chroma"),
    "FLUX.2 klein": ({"_class_name": "Flux2KleinPipeline"}, {"_class_name": "Flux2Transformer2DModel"}, "FLUX.2"),
    "FLUX.2 dev": ({}, {"_class_name": "Flux2Transformer2DModel"}, "FLUX.2"),
    "SD 3": ({"_class_name": "StableDiffusion3Pipeline"}, {}, "'StableDiffusion3Pipeline'"),
}


def folder_of(place: Path, index: Any = None, config: Any = None) -> Path:
    """A folder with these two files, each as JSON, or bytes as they are; without those that are None or empty."""
    for name, content in (("model_index.json", index), ("transformer/config.json", config)):
        if content is not None and content != {}:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return place


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", OTHERS)
def test_every_process_refuses_another_class_at_its_start(tmp_path: Path, process: str, name: str) -> None:
    index, config, says = OTHERS[name]
    settings = ServiceSettings(base_model=str(folder_of(tmp_path, index, config)), device="cpu")
    with pytest.raises(BaseModelError) as refused:
        PROCESSES[process](settings)
    assert says in refused.value.message
    assert "FLUX.1-dev, FLUX.1-Krea-dev, FLUX.1-schnell" in refused.value.remedy


@pytest.mark.parametrize("pipeline", ["FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline"])
@pytest.mark.parametrize("guidance", [True, False], ids=["dev", "schnell"])
def test_text_to_image_models_of_flux_1_are_taken(tmp_path: Path, pipeline: str, guidance: bool) -> None:
    folder = folder_of(tmp_path, {"_class_name": pipeline}, FLUX | {"guidance_embeds": guidance})
    refuse_other_model(folder)
    assert assumption(folder) == ""


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize(
    ("path", "origin", "says"),
    [
        ("base", "black-forest-labs/FLUX.1-Kontext-dev", "Kontext, which edits"),
        ("FLUX.1-Kontext-dev", "", "Kontext, which edits"),
        (f"models--black-forest-labs--FLUX.1-Kontext-dev/snapshots/{'0' * 40}", "", "Kontext, which edits"),
        ("flux1_fill_dev", "", "FLUX.1 Fill"),
        ("base", "C:\\models\\FLUX.1-Canny-dev", "FLUX.1 Canny or Depth"),
        ("FLUX.1-Depth-dev", "", "FLUX.1 Canny or Depth"),
        ("FLUX.1-Redux-dev", "", "FLUX.1 Redux"),
        ("Chroma1-HD", "", "Chroma"),
    ],
)
def test_name_of_another_class_is_refused_where_no_index_says_more(
    tmp_path: Path, process: str, path: str, origin: str, says: str
) -> None:
    folder = folder_of(tmp_path / path, None, FLUX | {"_name_or_path": origin})
    with pytest.raises(BaseModelError, match=r"has no model_index\.json and is") as refused:
        PROCESSES[process](ServiceSettings(base_model=str(folder), device="cpu"))
    assert says in refused.value.message
    folder_of(folder, {"_class_name": "FluxPipeline"})
    refuse_other_model(folder)


@pytest.mark.parametrize("path", ["kontext/base", "monochromatic", "landfill-style", "FLUX.1-dev"])
def test_name_that_says_nothing_is_no_reason_to_refuse(tmp_path: Path, path: str) -> None:
    refuse_other_model(folder_of(tmp_path / path, None, FLUX | {"_name_or_path": 3}))


def test_what_is_assumed_without_an_index_is_logged(
    base_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for part in ("transformer", "scheduler"):
        (tmp_path / part).symlink_to(base_model / part)
    with caplog.at_level(logging.WARNING):
        load_base(ServiceSettings(base_model=str(tmp_path), device="cpu"))
    assert "has no model_index.json, which would tell FLUX.1 Kontext from FLUX.1-dev" in caplog.text


SIZES = [
    *("num_layers", "num_single_layers", "attention_head_dim", "num_attention_heads"),
    *("joint_attention_dim", "pooled_projection_dim"),
]
NO_SIZES: list[Any] = [None, "x", -1, 1.5, 10**9, []]
NO_ROPES: list[Any] = [
    None,
    128,
    "16",
    [],
    [64, 64],
    [16, 56, 54],
    [15, 57, 56],
    [-16, 72, 72],
    [0, 64, 64],
    [16.0, 56, 56],
]
ODD: dict[str, tuple[Any, Any]] = {
    "empty": (None, None),
    "index is garbage": (b"\xff\x00{", FLUX),
    "index is no object": ([], FLUX),
    "index nested": (b"[" * 200_000, FLUX),
    "index without a class": ({"x": 1}, FLUX),
    "class is a number": ({"_class_name": 3}, FLUX),
    "config is garbage": (None, b"nonsense"),
    "config is empty": (None, b""),
    "config is a list": (None, [1]),
    "config is null": (None, b"null"),
    "config is huge": (None, b" " * (2 << 20)),
    "config without a class": (None, {"in_channels": 64}),
    "config without sizes": (None, FLUX),
    **{f"{name} is {value!r}": (None, FLUX | {name: value}) for name in SIZES for value in NO_SIZES},
    **{f"rope is {value!r}": (None, FLUX | {"axes_dims_rope": value}) for value in NO_ROPES},
    "guidance is a text": (None, FLUX | {"guidance_embeds": "yes"}),
    "patches": (None, FLUX | {"patch_size": 2}),
    "channels": (None, FLUX | {"in_channels": 16}),
    **{name: (index, config) for name, (index, config, _) in OTHERS.items()},
}


@pytest.mark.parametrize(("head", "rope"), [(128, [16, 56, 56]), (32, [8, 12, 12])])
def test_shares_of_positions_that_add_up_to_a_head_are_taken(tmp_path: Path, head: int, rope: list[int]) -> None:
    config = transformer_config(folder_of(tmp_path, None, FLUX | {"attention_head_dim": head, "axes_dims_rope": rope}))
    assert config is not None
    assert config["axes_dims_rope"] == rope


def test_shares_of_positions_that_do_not_add_up_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, None, FLUX | {"attention_head_dim": 32, "axes_dims_rope": [8, 12, 10]})
    with pytest.raises(BaseModelError, match=r"has axes_dims_rope \[8, 12, 10\], not 3 even .* attention_head_dim, 32"):
        transformer_config(folder)


@pytest.mark.parametrize("name", ODD)
def test_doctor_survives_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("FLUXSMITH_BASE_MODEL", str(folder_of(tmp_path, *ODD[name])))
    found = {each.name: each for each in doctor.checks(data=tmp_path, ports={})}
    assert found["model"].state == doctor.FAIL
    assert found["memory of machine"].state in (doctor.OK, doctor.WARN)
    assert all(each.remedy and "Error" not in each.found for each in found.values() if each.state == doctor.FAIL)


@pytest.mark.parametrize("name", ["file", "loop", "a" * 300, "nul\0"], ids=["file", "loop", "long", "nul"])
def test_base_that_is_no_folder_is_refused_in_words(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("{}")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(BaseModelError, match="not a folder"):
        load_base(ServiceSettings(base_model=f"{tmp_path}/{name}", device="cpu"))


@pytest.mark.parametrize("length", [b"[]", b'{"model_max_length": null}', b'{"model_max_length": -1}', b"\xff"])
def test_tokenizer_that_says_nothing_does_not_stop_an_estimate(
    base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: bytes
) -> None:
    (tmp_path / "transformer").symlink_to(base_model / "transformer")
    (tmp_path / "tokenizer_2").mkdir()
    (tmp_path / "tokenizer_2/tokenizer_config.json").write_bytes(length)
    monkeypatch.setenv("FLUXSMITH_BASE_MODEL", str(tmp_path))
    assert doctor.memory().state == doctor.OK
