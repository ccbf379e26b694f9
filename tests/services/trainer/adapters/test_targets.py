"""Which layers a job adapts: presets and expressions, on the real FLUX.1-dev without its weights."""

from __future__ import annotations

import inspect
import re
import time
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel

from services.common.base_check import DEFAULTS
from services.common.errors import InvalidInput
from services.trainer.adapters.targets import exactly, linear_names, linear_names_of, target_names, target_ranks
from services.trainer.config import TrainConfig
from services.trainer.config.choices import TargetPreset

FLUX_DEV = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": (16, 56, 56),
}
FLUX_SCHNELL = FLUX_DEV | {"guidance_embeds": False}
TINY = FLUX_DEV | {
    "num_layers": 2,
    "num_single_layers": 4,
    "attention_head_dim": 32,
    "num_attention_heads": 6,
    "joint_attention_dim": 128,
    "pooled_projection_dim": 64,
    "axes_dims_rope": (8, 12, 12),
}
QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
IMAGE = (*QKV, "attn.to_out.0", "ff.net.0.proj", "ff.net.2")
TEXT_ATTENTION = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out")
TEXT = (*TEXT_ATTENTION, "ff_context.net.0.proj", "ff_context.net.2")
PRESETS = {
    TargetPreset.IMAGE_STREAM: (IMAGE, (*QKV, "proj_mlp", "proj_out")),
    TargetPreset.IMAGE_AND_TEXT_STREAM: (IMAGE + TEXT, (*QKV, "proj_mlp", "proj_out")),
    TargetPreset.ATTENTION: ((*QKV, "attn.to_out.0", *TEXT_ATTENTION), QKV),
    TargetPreset.ALL_LINEAR: (
        (*IMAGE, *TEXT, "norm1.linear", "norm1_context.linear"),
        (*QKV, "proj_mlp", "proj_out", "norm.linear"),
    ),
}
OUTSIDE_OF_BLOCKS = {
    "x_embedder",
    "context_embedder",
    "norm_out.linear",
    "proj_out",
    *(
        f"time_text_embed.{part}.linear_{number}"
        for part in ("timestep_embedder", "text_embedder")
        for number in (1, 2)
    ),
}


def in_blocks(double: tuple[str, ...], single: tuple[str, ...]) -> set[str]:
    """Full names, given those inside a block of each kind."""
    names = {f"transformer_blocks.{block}.{name}" for block in range(19) for name in double}
    return names | {f"single_transformer_blocks.{block}.{name}" for block in range(38) for name in single}


@pytest.fixture(scope="module")
def flux_dev() -> tuple[str, ...]:
    return linear_names_of(FLUX_DEV)


def config(**fields: Any) -> TrainConfig:
    return TrainConfig(**fields)


def test_linear_layers_of_flux_dev_are_all_there(flux_dev: tuple[str, ...]) -> None:
    assert set(flux_dev) == in_blocks(*PRESETS[TargetPreset.ALL_LINEAR]) | OUTSIDE_OF_BLOCKS


@pytest.mark.parametrize(("preset", "count"), [*zip(PRESETS, (304, 418, 266, 494), strict=True)])
def test_preset_is_exactly_its_modules_of_flux_dev(flux_dev: tuple[str, ...], preset: TargetPreset, count: int) -> None:
    names = target_names(flux_dev, config(targets=preset))
    assert len(names) == count
    assert set(names) == in_blocks(*PRESETS[preset])
    assert list(names) == sorted(names)


@pytest.mark.parametrize("config", [FLUX_DEV, FLUX_SCHNELL, TINY, {}], ids=["dev", "schnell", "tiny", "defaults"])
def test_names_by_arithmetic_are_those_of_the_real_model(config: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = FluxTransformer2DModel.from_config(config)
    assert sorted(linear_names_of(config)) == sorted(linear_names(model))


def test_defaults_are_those_of_diffusers() -> None:
    parameters = inspect.signature(FluxTransformer2DModel.__init__).parameters
    assert {name: parameters[name].default for name in DEFAULTS} == DEFAULTS


def test_regex_takes_the_place_of_the_preset(flux_dev: tuple[str, ...]) -> None:
    names = target_names(flux_dev, config(target_regex=r"transformer_blocks\.[01]\.attn\.to_[qk]"))
    assert names == tuple(f"transformer_blocks.{block}.attn.to_{side}" for block in (0, 1) for side in "kq")


def test_regex_matches_in_full_and_not_by_suffix(flux_dev: tuple[str, ...]) -> None:
    assert target_names(flux_dev, config(target_regex="proj_out")) == ("proj_out",)


def test_regex_that_matches_nothing_is_refused_with_the_nearest_names(flux_dev: tuple[str, ...]) -> None:
    with pytest.raises(InvalidInput, match=r"nearest: .*transformer_blocks\.0\.attn\.to_q") as refused:
        target_names(flux_dev, config(target_regex=r"transformer_blocks\.\d+\.attn\.to_x"))
    assert refused.value.reason == "TARGET_MATCHES_NOTHING"
    assert [violation.field for violation in refused.value.violations] == ["config.target_regex"]


def test_regex_that_names_no_linear_layer_is_refused(flux_dev: tuple[str, ...]) -> None:
    with pytest.raises(InvalidInput):
        target_names(flux_dev, config(target_regex=r"transformer_blocks\.0\.attn"))


@pytest.mark.parametrize(
    "pattern",
    [
        "(.|.|[a-z])+[A-Z]",
        "(?:[a-z]|[a-z._0-9]|.)+[A-Z]",
        "(.*)*" * 100 + "!",
        "(((a{1,100}){1,100}){1,100}){1,100}",
        "(" * 500 + "a" + ")*" * 500,
    ],
    ids=["alternatives", "classes", "stars", "counts", "depth"],
)
def test_catastrophic_or_huge_regex_is_refused_in_time(flux_dev: tuple[str, ...], pattern: str) -> None:
    begin = time.thread_time()
    with pytest.raises(InvalidInput) as refused:
        target_names(flux_dev, TrainConfig().model_copy(update={"target_regex": pattern}))
    assert refused.value.reason == "TARGET_MATCHES_NOTHING"
    assert time.thread_time() - begin < 1


def test_rank_pattern_takes_the_first_that_matches_in_alphabetical_order(flux_dev: tuple[str, ...]) -> None:
    patterns = {r"single_.*proj_out": 8, r"single_.*": 4, r"transformer_blocks\.0\..*": 2}
    ranks = target_ranks(flux_dev, config(rank=16, rank_pattern=patterns))
    assert ranks["single_transformer_blocks.3.proj_out"] == 4  # "single_.*" comes before "single_.*proj_out"
    assert ranks["transformer_blocks.0.attn.to_q"] == 2
    assert ranks["transformer_blocks.1.attn.to_q"] == 16
    assert len(ranks) == 304


def test_rank_pattern_that_matches_no_target_is_refused(flux_dev: tuple[str, ...]) -> None:
    with pytest.raises(InvalidInput) as refused:
        target_ranks(flux_dev, config(rank_pattern={r".*\.add_q_proj": 8}))  # a layer, but not of this preset
    assert refused.value.reason == "TARGET_MATCHES_NOTHING"
    assert [violation.field for violation in refused.value.violations] == ["config.rank_pattern"]


def test_names_for_peft_match_nothing_else(flux_dev: tuple[str, ...]) -> None:
    pattern = exactly(["proj_out", "transformer_blocks.1.attn.to_q"])
    matched = {name for name in flux_dev if re.match(rf"(.*\.)?({pattern})$", name)}
    assert matched == {"transformer_blocks.1.attn.to_q", "proj_out"}
