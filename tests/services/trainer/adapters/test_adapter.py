"""The adapter: that it starts as nothing, does what its type says, and leaves nothing behind."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from services.common.errors import InvalidInput
from services.trainer.adapters import adapter
from services.trainer.adapters.adapter import (
    adapter_layers,
    adapter_parameters,
    attached,
    pissa_factors,
    without_dropout,
)
from services.trainer.adapters.files import peft_file, snapshot
from services.trainer.config import TrainConfig
from services.trainer.config.choices import TargetPreset
from services.trainer.packing import image_ids, text_ids
from services.trainer.transformer import prepared
from tests.services.trainer.conftest import draw

CONFIG = TrainConfig(rank=4, alpha=2.0, seed=7)
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "gaussian": {"init_weights": "GAUSSIAN"},
    "rslora": {"use_rslora": True},
    "pissa": {"init_weights": "PISSA"},
    "dora": {"adapter_type": "DORA"},
    "dora gaussian": {"adapter_type": "DORA", "init_weights": "GAUSSIAN"},
    "lokr": {"adapter_type": "LOKR"},
    "lokr factor": {"adapter_type": "LOKR", "lokr_factor": 4},
    "loha": {"adapter_type": "LOHA"},
}
LAYER = "transformer_blocks.0.attn.to_q"
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def job(**fields: Any) -> TrainConfig:
    """The configuration of a small job."""
    return TrainConfig(**CONFIG.model_dump(exclude_unset=True) | fields)


def output(transformer: nn.Module, *, tokens: int = 16) -> Tensor:
    """What the transformer says to a fixed question."""
    dtype = next(transformer.parameters()).dtype
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        (said,) = transformer(
            hidden_states=draw("image", 1, tokens, 64).to(dtype),
            timestep=torch.tensor([0.6]).to(dtype),
            encoder_hidden_states=draw("text", 1, 8, 128).to(dtype),
            pooled_projections=draw("pooled", 1, 64).to(dtype),
            txt_ids=text_ids(8, torch.device("cpu")),
            img_ids=image_ids(8, tokens // 2, torch.device("cpu")),
            return_dict=False,
        )
    velocity: Tensor = said.float()
    return velocity


def take_step(transformer: nn.Module) -> None:
    """One optimizer step on the trainable parameters, towards nothing in particular."""
    parameters = list(adapter_parameters(transformer).values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    output(transformer).square().mean().backward()
    optimizer.step()


def randomize(transformer: nn.Module) -> None:
    """Change every adapter tensor, as training would."""
    for name, parameter in adapter_parameters(transformer).items():
        parameter.data += 0.1 * draw(name, *parameter.shape)


def answer(transformer: nn.Module) -> Tensor:
    """`output` without a graph."""
    with torch.no_grad():
        return output(transformer)


def digest(module: nn.Module) -> str:
    """sha256 over names, types, bits and flags of everything in a module."""
    sha = hashlib.sha256(repr([(name, type(child)) for name, child in module.named_modules()]).encode())
    for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
        sha.update(f"{name} {tensor.dtype} {tensor.requires_grad} {tensor.grad is None}".encode())
        sha.update(tensor.detach().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


@pytest.fixture(autouse=True)
def _leave_base(transformer: FluxTransformer2DModel) -> Iterator[None]:
    """The base is shared by all tests: a trace left in it would be found somewhere else."""
    yield
    assert not adapter_layers(transformer)


@each_kind
def test_adapter_starts_as_identity(transformer: FluxTransformer2DModel, kind: dict[str, Any]) -> None:
    before = answer(transformer)
    with attached(transformer, job(**kind)):
        assert adapter_parameters(transformer)
        if kind.get("init_weights") == "PISSA":  # sums in another order
            torch.testing.assert_close(answer(transformer), before, rtol=1e-4, atol=1e-4)
        else:
            assert torch.equal(answer(transformer), before)


@each_kind
def test_first_step_changes_the_output(transformer: FluxTransformer2DModel, kind: dict[str, Any]) -> None:
    before = answer(transformer)
    with attached(transformer, job(**kind)):
        take_step(transformer)
        assert not torch.allclose(answer(transformer), before, atol=1e-3)


@pytest.mark.parametrize(("fields", "scale"), [({}, 2.0 / 4), ({"use_rslora": True}, 2.0 / 2), ({"rank": 1}, 2.0)])
def test_lora_adds_its_product_scaled(
    transformer: FluxTransformer2DModel, fields: dict[str, Any], scale: float
) -> None:
    question = draw("question", 3, 6 * 32)
    before = transformer.get_submodule(LAYER)(question)
    with attached(transformer, job(**fields)):
        randomize(transformer)
        parameters = adapter_parameters(transformer)
        down, up = parameters[f"{LAYER}.lora_A.weight"], parameters[f"{LAYER}.lora_B.weight"]
        change = transformer.get_submodule(LAYER)(question) - before
        torch.testing.assert_close(change, scale * question @ down.T @ up.T, rtol=1e-4, atol=1e-5)


def test_initial_spread_is_that_of_its_name(transformer: FluxTransformer2DModel) -> None:
    spreads = {}
    for name in ("KAIMING", "GAUSSIAN"):
        with attached(transformer, job(rank=16, init_weights=name)):
            spreads[name] = float(adapter_parameters(transformer)[f"{LAYER}.lora_A.weight"].detach().std())
    assert spreads["GAUSSIAN"] == pytest.approx(1 / 16, rel=0.1)
    assert spreads["KAIMING"] == pytest.approx((1 / 192 / 3) ** 0.5, rel=0.1)


def test_lokr_factor_is_the_side_of_the_smaller_matrix(transformer: FluxTransformer2DModel) -> None:
    with attached(transformer, job(adapter_type="LOKR", lokr_factor=4)):
        assert adapter_parameters(transformer)[f"{LAYER}.lokr_w1"].shape == (4, 4)


def test_dropout_hides_inputs_from_the_adapter_in_training_only(transformer: FluxTransformer2DModel) -> None:
    with attached(transformer, job(adapter_dropout=0.5)):
        randomize(transformer)
        assert not torch.equal(answer(transformer), answer(transformer))
        transformer.eval()
        assert torch.equal(answer(transformer), answer(transformer))
        transformer.train()


def test_ranks_follow_the_pattern(transformer: FluxTransformer2DModel) -> None:
    # Alone, `proj_out` would also be the end of other names.
    config = job(target_regex=".*proj_out", rank_pattern={"proj_out": 8, r"single_transformer_blocks\.1\..*": 2})
    with attached(transformer, config):
        ranks = {name: len(tensor) for name, tensor in adapter_parameters(transformer).items() if "lora_A" in name}
    blocks = {f"single_transformer_blocks.{block}.proj_out": 2 if block == 1 else 4 for block in range(4)}
    assert ranks == {f"{name}.lora_A.weight": rank for name, rank in {"proj_out": 8, **blocks}.items()}


@each_kind
def test_bf16_base_trains_every_kind_in_float32(transformer_bf16: FluxTransformer2DModel, kind: dict[str, Any]) -> None:
    before, bits = answer(transformer_bf16), digest(transformer_bf16)
    with attached(transformer_bf16, job(**kind)):
        assert {parameter.dtype for parameter in adapter_parameters(transformer_bf16).values()} == {torch.float32}
        # bf16 has three digits; PiSSA's rest of the weights is rounded to them.
        assert float((answer(transformer_bf16) - before).norm() / before.norm()) < 0.02
        take_step(transformer_bf16)
        after = answer(transformer_bf16)
        assert torch.isfinite(after).all()
        assert not torch.equal(after, before)
    assert digest(transformer_bf16) == bits


def test_lengths_of_a_bf16_base_are_measured_in_float32(transformer_bf16: FluxTransformer2DModel) -> None:
    with attached(transformer_bf16, job(**KINDS["dora"])):
        lengths = adapter_parameters(transformer_bf16)[f"{LAYER}.lora_magnitude_vector.weight"]
        weight = transformer_bf16.get_submodule(LAYER).get_base_layer().weight.float()
        torch.testing.assert_close(lengths.data, torch.linalg.norm(weight, dim=1))


@each_kind
def test_only_the_adapter_is_trained(transformer: FluxTransformer2DModel, kind: dict[str, Any]) -> None:
    with attached(transformer, job(**kind)):
        trained = {id(parameter) for parameter in transformer.parameters() if parameter.requires_grad}
        assert trained == {id(parameter) for parameter in adapter_parameters(transformer).values()}


def test_a_hundred_jobs_leave_no_trace(transformer: FluxTransformer2DModel) -> None:
    # One block of each kind: all names that there are, a third of the time.
    small = {**transformer.config, "num_layers": 1, "num_single_layers": 1}
    transformer = prepared(FluxTransformer2DModel.from_config(small))
    before, attributes = digest(transformer), set(vars(transformer))
    targets = [{"targets": preset} for preset in TargetPreset] + [{"target_regex": r"proj_out|.*\.to_v"}]
    for kind, target in itertools.islice(itertools.cycle(itertools.product(KINDS.values(), targets)), 100):
        config = job(**kind, **target)
        with attached(transformer, config):
            take_step(transformer)
            assert peft_file(snapshot(transformer, config), config, {})
    assert digest(transformer) == before
    assert set(vars(transformer)) == attributes


@pytest.mark.parametrize("kind", ["lora", "pissa", "dora", "lokr"])
def test_job_that_fails_leaves_no_trace(transformer: FluxTransformer2DModel, kind: str) -> None:
    before = digest(transformer)

    def run() -> None:
        with attached(transformer, job(**KINDS[kind])):
            take_step(transformer)
            assert digest(transformer) != before
            raise RuntimeError("cancelled")

    with pytest.raises(RuntimeError, match="cancelled"):
        run()
    assert digest(transformer) == before


@pytest.mark.parametrize("kind", ["lora", "pissa", "dora", "lokr", "loha"])
def test_attaching_that_fails_halfway_leaves_no_trace(
    transformer: FluxTransformer2DModel, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    before = digest(transformer)
    real, count = nn.init.kaiming_uniform_, itertools.count()

    def failing(*arguments: Any, **options: Any) -> Any:
        if next(count) == 60:
            raise MemoryError("no room")
        return real(*arguments, **options)

    monkeypatch.setattr(nn.init, "kaiming_uniform_", failing)
    with pytest.raises(MemoryError), attached(transformer, job(**KINDS[kind])):
        pass
    assert digest(transformer) == before
    assert not hasattr(transformer, "peft_config")


def test_pissa_that_fails_halfway_gives_the_weights_back(
    transformer: FluxTransformer2DModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, count = digest(transformer), itertools.count()
    real = torch.svd_lowrank

    def failing(*arguments: Any, **options: Any) -> Any:
        if next(count) == 5:
            raise MemoryError("no room")
        return real(*arguments, **options)

    monkeypatch.setattr("peft.tuners.lora.layer.svd_lowrank", failing)
    with pytest.raises(MemoryError), attached(transformer, job(init_weights="PISSA")):
        pass
    assert digest(transformer) == before


def initial(transformer: nn.Module, config: TrainConfig) -> dict[str, Tensor]:
    """The adapter as such a job begins."""
    with attached(transformer, config):
        return {name: parameter.detach().clone() for name, parameter in adapter_parameters(transformer).items()}


@each_kind
def test_seed_decides_the_initial_weights(transformer: FluxTransformer2DModel, kind: dict[str, Any]) -> None:
    first = initial(transformer, job(**kind, seed=1))
    torch.manual_seed(5)
    again = initial(transformer, job(**kind, seed=1))
    other = initial(transformer, job(**kind, seed=2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("kind", ["lora", "pissa"])
def test_attaching_leaves_the_global_generator_alone(transformer: FluxTransformer2DModel, kind: str) -> None:
    before = torch.random.get_rng_state()
    initial(transformer, job(**KINDS[kind]))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_pissa_takes_the_main_part_from_the_base(transformer: FluxTransformer2DModel) -> None:
    weight = transformer.get_submodule(LAYER).weight.clone()
    with attached(transformer, job(init_weights="PISSA", rank=8)):
        rest = transformer.get_submodule(LAYER).get_base_layer().weight
        values, rest_values = torch.linalg.svdvals(weight), torch.linalg.svdvals(rest)
        assert float(rest_values[0]) == pytest.approx(float(values[8]), rel=0.05)


def test_pissa_goes_on_from_the_part_it_began_with(transformer: FluxTransformer2DModel) -> None:
    with attached(transformer, job(init_weights="PISSA", seed=1)):
        factors = pissa_factors(transformer)
        rest = transformer.get_submodule(LAYER).get_base_layer().weight.clone()
    with attached(transformer, job(init_weights="PISSA", seed=2), pissa_start=factors):
        assert torch.equal(transformer.get_submodule(LAYER).get_base_layer().weight, rest)
        assert all(torch.equal(pissa_factors(transformer)[name], factors[name]) for name in factors)
        assert torch.equal(adapter_parameters(transformer)[f"{LAYER}.lora_A.weight"], factors[f"{LAYER}.lora_A.weight"])


def test_pissa_does_not_train_on_the_factors_that_it_is_given(transformer: FluxTransformer2DModel) -> None:
    with attached(transformer, job(init_weights="PISSA")):
        factors = pissa_factors(transformer)
    kept = {name: factor.clone() for name, factor in factors.items()}
    with attached(transformer, job(init_weights="PISSA"), pissa_start=factors):
        take_step(transformer)
    assert all(torch.equal(factors[name], kept[name]) for name in kept)


@each_kind
def test_adapter_that_was_off_goes_on_to_the_bit(transformer: FluxTransformer2DModel, kind: dict[str, Any]) -> None:
    before = digest(transformer)
    with attached(transformer, job(**kind)) as adapter:
        take_step(transformer)
        trained, names = digest(transformer), list(adapter_parameters(transformer))
        adapter.take_off()
        assert digest(transformer) == before
        assert not hasattr(transformer, "peft_config")
        adapter.put_on()
        assert (digest(transformer), list(adapter_parameters(transformer))) == (trained, names)
        assert transformer.peft_config
    assert digest(transformer) == before


def test_own_tensors_are_the_same_on_the_base_and_off_it(transformer: FluxTransformer2DModel) -> None:
    with attached(transformer, job(**KINDS["dora"])) as adapter:
        parameters = {id(parameter) for parameter in adapter_parameters(transformer).values()}
        assert {id(tensor) for tensor in adapter.own_tensors()} == parameters
        adapter.take_off()
        assert {id(tensor) for tensor in adapter.own_tensors()} == parameters


def test_adapter_that_ends_off_the_base_leaves_another_on_it(transformer: FluxTransformer2DModel) -> None:
    before, first = digest(transformer), attached(transformer, job(**KINDS["pissa"]))
    first.__enter__().take_off()
    with attached(transformer, job(seed=1)):
        there = digest(transformer)
        first.__exit__(None, None, None)
        assert digest(transformer) == there
    assert digest(transformer) == before


def test_without_dropout_every_answer_is_the_same(transformer: FluxTransformer2DModel) -> None:
    with attached(transformer, job(adapter_dropout=0.5)):
        randomize(transformer)
        with without_dropout(transformer):
            assert torch.equal(answer(transformer), answer(transformer))
            assert transformer.training
        assert not torch.equal(answer(transformer), answer(transformer))


def test_end_of_without_dropout_does_not_touch_another_adapter(transformer: FluxTransformer2DModel) -> None:
    with attached(transformer, job(adapter_dropout=0.5)) as adapter:
        with without_dropout(transformer):
            adapter.take_off()
            with attached(transformer, job(adapter_dropout=0.5, seed=1)), without_dropout(transformer):
                pass
            other = attached(transformer, job(adapter_dropout=0.5, seed=1))
            other.__enter__()
            transformer.eval()
        assert not any(layer.training for layer in adapter_layers(transformer).values())
        transformer.train()
        other.__exit__(None, None, None)


def test_pissa_of_a_rank_above_the_layer_is_refused(transformer: FluxTransformer2DModel) -> None:
    with pytest.raises(InvalidInput, match="65 for x_embedder") as refused:
        initial(transformer, job(init_weights="PISSA", rank=65, target_regex="x_embedder"))
    assert refused.value.reason == "RANK_ABOVE_LAYER"


def test_targets_that_match_nothing_are_refused_before_anything_changes(transformer: FluxTransformer2DModel) -> None:
    before = digest(transformer)
    with pytest.raises(InvalidInput):
        initial(transformer, job(target_regex="nothing"))
    assert digest(transformer) == before
    assert adapter.ADAPTER == "default"  # diffusers' and peft's name, which files leave out
