"""A model folder is loaded, however its files are cut up, or refused by its headers with what is wrong with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5EncoderModel

from services.common.base_check import BaseModelError
from services.common.settings import ServiceSettings
from services.encoder.model_folder import made_for_tokens
from services.encoder.models import EncoderModels, load_models
from services.encoder.settings import EncoderSettings

VAE, CLIP, T5 = (
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
    "text_encoder_2/model.safetensors",
)


@pytest.fixture
def folder(base_model: Path, tmp_path: Path) -> Path:
    """A copy of the model folder that a test may damage."""
    return shutil.copytree(
        base_model, tmp_path / "model", ignore=shutil.ignore_patterns("transformer", "scheduler", "*.png")
    )


def load(folder: Path, models: str = "one") -> EncoderModels:
    """The models in float32; with `one` nothing is loaded yet, so what is refused is refused by its headers."""
    service = ServiceSettings(base_model=str(folder), device="cpu", dtype="fp32")
    return load_models(service, EncoderSettings.model_validate({"t5_precision": "fp32", "models": models}))


def refused(folder: Path) -> str:
    """What is said of a folder when it is refused, the same whether models are to be loaded at once or later."""
    said = set()
    for models in ("one", "all"):
        with pytest.raises(BaseModelError) as caught:
            load(folder, models)
        assert caught.value.remedy
        said.add(caught.value.line)
    (line,) = said
    assert "\n" not in line
    return line


def reconfigured(part: Path, **values: object) -> None:
    """Change values of a part's config.json; None takes one out."""
    config = json.loads((part / "config.json").read_text()) | values
    kept = {name: value for name, value in config.items() if value is not None}
    (part / "config.json").write_text(json.dumps(kept))


def reweighted(file: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change the tensors of a safetensors file in place."""
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def test_a_t5_in_shards_loads_to_the_same_bits(folder: Path, encoder_models: EncoderModels) -> None:
    part = folder / "text_encoder_2"
    whole = T5EncoderModel.from_pretrained(part)
    (part / "model.safetensors").unlink()
    whole.save_pretrained(part, max_shard_size="2MB")
    assert (part / "model.safetensors.index.json").exists()
    assert len(list(part.glob("model-*-of-*.safetensors"))) > 1
    assert torch.equal(load(folder).encode_caption("a red apple")[0], encoder_models.encode_caption("a red apple")[0])


def test_a_shard_that_is_missing_is_named(folder: Path) -> None:
    part = folder / "text_encoder_2"
    index = {"weight_map": dict.fromkeys(load_file(folder / T5), "model-00001-of-00002.safetensors")}
    (part / "model.safetensors.index.json").write_text(json.dumps(index))
    (part / "model.safetensors").unlink()
    assert "text_encoder_2 of base model" in refused(folder)
    assert "lacks model-00001-of-00002.safetensors" in refused(folder)
    (part / "model.safetensors.index.json").write_text("{}")
    assert "without a weight_map" in refused(folder)


def test_names_of_clip_weights_before_transformers_5_are_understood(
    folder: Path, encoder_models: EncoderModels
) -> None:
    def prefix(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[f"text_model.{name}"] = tensors.pop(name)

    reweighted(folder / CLIP, prefix)
    assert torch.equal(load(folder).encode_caption("a red apple")[1], encoder_models.encode_caption("a red apple")[1])


def test_a_tokenizer_without_tokenizer_json_gives_the_same_tokens(folder: Path, encoder_models: EncoderModels) -> None:
    (folder / "tokenizer" / "tokenizer.json").unlink()  # FLUX.1-dev's has vocab.json and merges.txt only
    ours, theirs = load(folder).clip_tokenizer, encoder_models.clip_tokenizer
    assert torch.equal(ours.ids("A red äpple 🍎"), theirs.ids("A red äpple 🍎"))


def test_missing_parts_are_all_named(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    assert "text_encoder, text_encoder_2, tokenizer, tokenizer_2" in refused(tmp_path)


@pytest.mark.parametrize("file", [VAE, CLIP, T5])
def test_weights_that_are_missing_cut_short_or_something_else_are_refused(folder: Path, file: str) -> None:
    path = folder / file
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:1000], whole + b"more", b"version https://git-lfs.github.com/spec/v1\n", b""):
        path.write_bytes(damaged)
        assert f"{path.name} cut short or not in safetensors' format" in refused(folder)
    path.unlink()
    assert f"has neither {path.name} nor {path.name}.index.json" in refused(folder)


@pytest.mark.parametrize("file", [VAE, CLIP, T5])
def test_weights_that_do_not_fit_the_configuration_are_refused_by_name(folder: Path, file: str) -> None:
    path = folder / file
    name = sorted(load_file(path))[0]
    reweighted(path, lambda tensors: tensors.update({name: torch.zeros(3, 5)}))
    assert f"has {name} of shape (3, 5)" in refused(folder)
    reweighted(path, lambda tensors: tensors.pop(name))
    assert f"lacks the weights {name}" in refused(folder)


@pytest.mark.parametrize(
    ("part", "values", "said"),
    [
        ("vae", {"latent_channels": 4}, "latent_channels 4 in its config.json, not 16"),
        ("vae", {"shift_factor": None}, "shift_factor None in its config.json, where a number belongs"),
        ("vae", {"scaling_factor": "0.36"}, "scaling_factor '0.36'"),
        ("vae", {"block_out_channels": [24, 48]}, "block_out_channels [24, 48], not 4"),
        ("vae", {"_class_name": "AutoencoderDC"}, "'AutoencoderDC' in its config.json, not 'AutoencoderKL'"),
        ("vae", {"norm_num_groups": 7}, "makes no model"),
        ("text_encoder", {"model_type": "t5"}, "'t5' in its config.json, not 'clip_text_model'"),
        ("text_encoder", {"max_position_embeddings": 32}, "max_position_embeddings 32 in its config.json, not 77"),
        ("text_encoder", {"num_attention_heads": "many"}, "makes no model"),
        ("text_encoder_2", {"model_type": "clip_text_model"}, "not 't5'"),
        ("text_encoder_2", {"d_model": 64}, "where its config.json asks for"),
        ("text_encoder_2", {"num_layers": "two"}, "makes no model"),
        ("text_encoder_2", {"vocab_size": None}, "vocab_size None"),
    ],
)
def test_a_part_of_another_kind_is_refused(folder: Path, part: str, values: dict[str, object], said: str) -> None:
    reconfigured(folder / part, **values)
    assert said in refused(folder)


@pytest.mark.parametrize("part", ["vae", "text_encoder", "text_encoder_2"])
@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00\xff", "[" * 100_000])
def test_a_broken_configuration_is_refused(folder: Path, part: str, text: str) -> None:
    (folder / part / "config.json").write_text(text)
    assert f"{part} of base model" in refused(folder)


@pytest.mark.parametrize("part", ["tokenizer", "tokenizer_2"])
def test_a_broken_tokenizer_is_refused(folder: Path, part: str) -> None:
    (folder / part / "tokenizer.json").write_text("{")
    assert f"{part} of base model" in refused(folder)
    shutil.rmtree(folder / part)
    (folder / part).mkdir()
    assert f"{part} of base model" in refused(folder)


def test_a_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer")
    shutil.copytree(folder / "tokenizer_2", folder / "tokenizer")
    assert "tokenizer of base model" in refused(folder)


def test_a_part_that_goes_away_before_its_first_use_is_named(folder: Path) -> None:
    models = load(folder)
    (folder / CLIP).unlink()
    with pytest.raises(BaseModelError, match=r"text_encoder of base model .* cannot be loaded"):
        models.encode_caption("a red apple")


@pytest.mark.parametrize(("guidance", "length", "tokens"), [(True, 512, 512), (False, 512, 256), (False, 32, 32)])
def test_t5_is_padded_to_what_the_transformer_was_made_for(
    tmp_path: Path, guidance: bool, length: int, tokens: int
) -> None:
    assert made_for_tokens(tmp_path, length) == min(length, 512)  # nothing says that it is schnell
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer/config.json").write_text(json.dumps({"guidance_embeds": guidance}))
    assert made_for_tokens(tmp_path, length) == tokens


@pytest.mark.parametrize("part", [VAE, T5])
def test_files_that_change_under_a_running_encoder_are_not_mixed_with_the_old_ones(folder: Path, part: str) -> None:
    models = load(folder)
    weights = load_file(folder / part)
    save_file({name: tensor + 0.01 for name, tensor in weights.items()}, folder / part)
    with pytest.raises(BaseModelError, match="have changed since the encoder started") as caught:
        models.load("vae" if part == VAE else "text_encoder_2")
    assert "Restart" in caught.value.remedy
    assert models.loaded() == ()


def test_length_of_t5_can_be_set(service_settings: ServiceSettings) -> None:
    models = load_models(service_settings, EncoderSettings(t5_precision="fp32", t5_tokens=48))
    assert models.encode_caption("a red apple")[0].shape[0] == 48
