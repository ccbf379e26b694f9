"""A job that begins with a file: the same effect whatever the scales, and a clear refusal of what does not fit."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from services.common.errors import InvalidInput
from services.trainer.adapters.adapter import adapter_parameters, attached
from services.trainer.adapters.files import peft_file
from services.trainer.adapters.kohya import kohya_file
from services.trainer.adapters.warm_start import load_into, read_adapter
from services.trainer.config import TrainConfig
from tests.services.trainer.adapters.test_adapter import KINDS, LAYER, answer, job
from tests.services.trainer.adapters.test_files import DORAS, LORAS, PATTERN, trained

WITHOUT_PISSA = {name: fields for name, fields in (KINDS | LORAS | DORAS).items() if "pissa" not in name}


def after_loading(transformer: FluxTransformer2DModel, config: TrainConfig, data: bytes) -> Tensor:
    """What a job that begins with the file says before its first step."""
    with attached(transformer, config):
        load_into(transformer, config, data)
        return answer(transformer)


def refusal(transformer: FluxTransformer2DModel, config: TrainConfig, data: bytes) -> InvalidInput:
    """How a job refuses the file."""
    with pytest.raises(InvalidInput) as refused:
        after_loading(transformer, config, data)
    assert [violation.field for violation in refused.value.violations] == ["config.warm_start_uri"]
    return refused.value


@pytest.mark.parametrize("fields", WITHOUT_PISSA.values(), ids=WITHOUT_PISSA)
def test_job_begins_with_the_effect_of_the_file(transformer: FluxTransformer2DModel, fields: dict[str, Any]) -> None:
    config = job(**fields)
    adapter, before = trained(transformer, config)
    other = job(**fields | {"alpha": 5.0, "seed": 9})
    after = after_loading(transformer, other, peft_file(adapter, config, {}))
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "fields",
    [{"alpha": 7.0}, {"use_rslora": True}, PATTERN, {"targets": "ALL_LINEAR"}, {"target_regex": r"proj_out|.*to_k"}],
)
def test_job_begins_with_the_effect_of_a_kohya_file(
    transformer: FluxTransformer2DModel, fields: dict[str, Any]
) -> None:
    config = job(**fields)
    adapter, before = trained(transformer, config)
    after = after_loading(transformer, config, kohya_file(adapter, config, {}) or b"")
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)


def test_file_of_the_same_scale_comes_back_to_the_bit(transformer: FluxTransformer2DModel) -> None:
    adapter, before = trained(transformer, job())
    assert torch.equal(after_loading(transformer, job(), peft_file(adapter, job(), {})), before)


def test_pissa_file_goes_on_as_a_lora_of_twice_the_rank(transformer: FluxTransformer2DModel) -> None:
    adapter, before = trained(transformer, job(init_weights="PISSA"))
    after = after_loading(transformer, job(rank=8), peft_file(adapter, job(), {}))
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)


def test_parameters_stay_trainable_and_in_float32(transformer: FluxTransformer2DModel) -> None:
    config = job(file_dtype="BF16")
    data = peft_file(trained(transformer, config)[0], config, {})
    with attached(transformer, config):
        load_into(transformer, config, data)
        found = {(parameter.dtype, parameter.requires_grad) for parameter in adapter_parameters(transformer).values()}
    assert found == {(torch.float32, True)}


def foreign(description: dict[str, Any] | None, rank: int = 2) -> bytes:
    """A file as others write it, with or without peft's configuration in its header."""
    tensors = {f"transformer.{LAYER}.lora_A.weight": torch.ones(rank, 192)}
    tensors[f"transformer.{LAYER}.lora_B.weight"] = torch.ones(192, rank)
    header = {} if description is None else {"lora_adapter_metadata": json.dumps(description)}
    return bytes(safetensors.torch.save(tensors, {"format": "pt", **header}))


@pytest.mark.parametrize(
    ("description", "scale"),
    [
        (None, 1.0),
        ({"transformer.r": 2, "transformer.lora_alpha": 6.0}, 3.0),
        ({"transformer.lora_alpha": 6.0, "transformer.use_rslora": True}, 6.0 / 2**0.5),
        ({"transformer.lora_alpha": 1.0, "transformer.alpha_pattern": {"attn.to_q": 8}}, 4.0),
        ({"transformer.lora_alpha": 1.0, "transformer.alpha_pattern": {f"^{LAYER}$": 8}}, 4.0),
        ({"transformer.lora_alpha": 1.0, "transformer.alpha_pattern": {"attn.to_q": 8, ".*to_q": 2}}, 4.0),
        ({"transformer.lora_alpha": 1.0, "transformer.alpha_pattern": {".*to_q": 2, "attn.to_q": 8}}, 1.0),
        ({"transformer.lora_alpha": 2.0, "transformer.alpha_pattern": {"text_model.*": 8}}, 1.0),
        ({"transformer.r": 2}, 1.0),
    ],
)
def test_scale_of_a_file_is_what_diffusers_takes(description: dict[str, Any] | None, scale: float) -> None:
    assert read_adapter(foreign(description)).scales == {LAYER: pytest.approx(scale)}


def test_other_rank_is_refused_with_the_rank_to_set(transformer: FluxTransformer2DModel) -> None:
    adapter, _ = trained(transformer, job(rank=6))
    refused = refusal(transformer, job(), peft_file(adapter, job(), {}))
    assert refused.reason == "WARM_START_MISMATCH"
    assert "is (6, 192), the job's (4, 192)" in refused.message
    assert "rank 6" in refused.remedy


def test_other_modules_are_refused_by_name(transformer: FluxTransformer2DModel) -> None:
    adapter, _ = trained(transformer, job(target_regex=r".*attn\.to_q|x_embedder"))
    refused = refusal(transformer, job(target_regex=r".*attn\.to_q|proj_out"), peft_file(adapter, job(), {}))
    assert refused.reason == "WARM_START_MISMATCH"
    assert "the file lacks proj_out and has besides x_embedder" in refused.message


def test_other_type_is_refused_with_the_type_to_set(transformer: FluxTransformer2DModel) -> None:
    adapter, _ = trained(transformer, job(adapter_type="LOKR"))
    refused = refusal(transformer, job(), peft_file(adapter, job(), {}))
    assert (refused.reason, refused.remedy) == ("WARM_START_MISMATCH", "Set adapter_type to LOKR.")


def test_refused_file_changes_nothing(transformer: FluxTransformer2DModel) -> None:
    data = peft_file(trained(transformer, job(rank_pattern={".*proj_out": 6}))[0], job(), {})
    with attached(transformer, job()):
        before = answer(transformer)
        with pytest.raises(InvalidInput):
            load_into(transformer, job(), data)
        assert torch.equal(answer(transformer), before)


def with_tensor(value: float) -> bytes:
    """A LoRA file with this number in it."""
    name = f"transformer.{LAYER}.lora"
    tensors = {f"{name}_A.weight": torch.ones(2, 3), f"{name}_B.weight": torch.full((3, 2), value)}
    return bytes(safetensors.torch.save(tensors))


BROKEN = {
    "nothing": b"",
    "no safetensors": b"PK\x03\x04 and so on, for longer than eight bytes",
    "cut off": foreign(None)[:-10],
    "no tensors": safetensors.torch.save({}),
    "a whole model": safetensors.torch.save({"proj_out.weight": torch.ones(2, 2)}),
    "integers": safetensors.torch.save({f"transformer.{LAYER}.lora_A.weight": torch.ones(2, 3, dtype=torch.int32)}),
    "another model's": safetensors.torch.save({"unet.down_blocks.0.lora_A.weight": torch.ones(2, 3)}),
    "kohya, text encoder": safetensors.torch.save({"lora_unet_x.lora_down.weight": torch.ones(2, 3)}),
    "not finite": with_tensor(float("nan")),
    "header no object": foreign([1]),  # type: ignore[arg-type]
    "alpha no number": foreign({"transformer.lora_alpha": [1]}),
    "pattern that is none": foreign({"transformer.lora_alpha": 1.0, "transformer.alpha_pattern": {"(": 2}}),
    "no rank": foreign(None, rank=0),
    "one side": safetensors.torch.save({f"transformer.{LAYER}.lora_B.weight": torch.ones(2, 3)}),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_what_is_no_lora_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput) as refused:
        read_adapter(data)
    assert refused.value.reason == "WARM_START_UNREADABLE"


@pytest.mark.parametrize(
    ("alphas", "says"),
    [
        ({"alpha_pattern": "abc"}, "alpha_pattern of lora_adapter_metadata is 'abc', and no object"),
        ({"alpha_pattern": [1, 2]}, r"is \[1, 2\], and no object"),
        ({"alpha_pattern": {"to_q": None}}, "alpha_pattern 'to_q' of lora_adapter_metadata is None, and no number"),
        ({"lora_alpha": {"a": 1}}, r"lora_alpha of lora_adapter_metadata is \{'a': 1\}, and no number"),
        ({"lora_alpha": "8"}, "is '8', and no number"),
        ({"lora_alpha": True}, "is True, and no number"),
        ({"lora_alpha": 2e6}, "has alpha 2e"),
        ({"lora_alpha": 10**400}, "beyond all floating-point numbers"),
    ],
)
def test_bad_alpha_in_a_header_is_refused_in_words(alphas: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        read_adapter(foreign({f"transformer.{key}": value for key, value in ({"lora_alpha": 1.0} | alphas).items()}))


@pytest.mark.parametrize("pattern", ["(?:[a-z]|[a-z._0-9]|.)+[A-Z]", "(.*)*" * 100 + "!"])
def test_catastrophic_pattern_in_a_header_matches_nothing_in_time(pattern: str) -> None:
    begin = time.thread_time()
    read = read_adapter(foreign({"transformer.lora_alpha": 2.0, "transformer.alpha_pattern": {pattern: 8}}))
    assert read.scales == {LAYER: 1.0}
    assert time.thread_time() - begin < 1


@pytest.mark.parametrize(
    "pattern",
    ["(((a{1,100}){1,100}){1,100}){1,100}", ".{0,999}" * 24, "(.*)*" * 1000 + "!", "a" * 200_001],
    ids=["nested counts", "counts", "stars", "length"],
)
def test_huge_pattern_in_a_header_is_refused_in_time(pattern: str) -> None:
    begin = time.thread_time()
    with pytest.raises(InvalidInput) as refused:
        read_adapter(foreign({"transformer.lora_alpha": 2.0, "transformer.alpha_pattern": {pattern: 8}}))
    assert refused.value.reason == "WARM_START_UNREADABLE"
    assert time.thread_time() - begin < 1


@pytest.mark.parametrize(
    ("patterns", "says"),
    [
        ([f"layer.{number}" for number in range(10_000)], "over 1,000 entries"),
        ([f".*[a-z].*{number}" for number in range(500)], "over 100 expressions that are more than a name"),
    ],
    ids=["entries", "expressions"],
)
def test_header_with_too_many_patterns_is_refused_in_words(patterns: list[str], says: str) -> None:
    alphas = dict.fromkeys(patterns, 8)
    with pytest.raises(InvalidInput, match=says):
        read_adapter(foreign({"transformer.lora_alpha": 2.0, "transformer.alpha_pattern": alphas}))


@pytest.mark.parametrize("own", [LAYER, f"^{re.escape(LAYER)}$", LAYER.replace(".", r"\."), "attn.to_q", "^.*to_q"])
def test_pattern_for_each_of_many_layers_is_read(own: str) -> None:
    others = [f"^single_transformer_blocks.{number}.proj_out$" for number in range(900)] + ["to_qq", "o_q", "attn"]
    alphas = dict.fromkeys(others, 2) | {own: 8}
    read = read_adapter(foreign({"transformer.lora_alpha": 2.0, "transformer.alpha_pattern": alphas}))
    assert read.scales == {LAYER: 4.0}
