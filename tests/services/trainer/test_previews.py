"""What is sampled for previews is what diffusers' FluxPipeline samples, and training does not notice.

Legend: B batch, C latent channels, h/w latent height and width.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import Tensor

from services.trainer.adapters.adapter import adapter_parameters, attached
from services.trainer.adapters.files import peft_file, snapshot
from services.trainer.config import TrainConfig
from services.trainer.packing import unpack
from services.trainer.previews import Embedding, Size, sample_latents, sampling_pipeline
from tests.services.trainer.conftest import CLIP_WIDTH, T5_TOKENS, T5_WIDTH, draw

PROMPT = "a red circle"
CONFIG = TrainConfig(rank=4, preview_prompts=(PROMPT,), preview_sampling_steps=3, preview_seed=5)
SQUARE = Size(height_px=64, width_px=64)
SIZES = [SQUARE, Size(height_px=48, width_px=80)]


@pytest.fixture
def sampler(transformer: FluxTransformer2DModel, base_model: Path) -> FluxPipeline:
    """The pipeline around the resident transformer."""
    return sampling_pipeline(transformer, base_model / "scheduler")


@pytest.fixture(scope="module")
def embedding(pipeline: FluxPipeline) -> Embedding:
    """The prompt as diffusers embeds it."""
    with torch.no_grad():
        t5_BSD, clip_BD, _ = pipeline.encode_prompt(PROMPT, None, max_sequence_length=t5_tokens(pipeline))
    return Embedding(t5_BSD=t5_BSD, clip_BD=clip_BD)


@pytest.fixture
def reference(pipeline: FluxPipeline) -> Iterator[FluxPipeline]:
    """Diffusers' own pipeline with all its models; without any adapter afterwards."""
    pipeline.set_progress_bar_config(disable=True)
    yield pipeline
    pipeline.unload_lora_weights()


def t5_tokens(pipeline: FluxPipeline) -> int:
    """Length that the base model was made for."""
    return int(pipeline.tokenizer_2.model_max_length)


def theirs(pipeline: FluxPipeline, config: TrainConfig, size: Size) -> Tensor:
    """Latents (C, h, w) as a user of diffusers samples them."""
    tokens_BLP = pipeline(
        PROMPT,
        height=size.height_px,
        width=size.width_px,
        num_inference_steps=config.preview_sampling_steps,
        guidance_scale=config.preview_guidance_scale,
        generator=torch.Generator("cpu").manual_seed(config.preview_seed),
        max_sequence_length=t5_tokens(pipeline),
        output_type="latent",
    ).images
    return unpack(tokens_BLP, size.height_px // 8, size.width_px // 8)[0]


def proceed() -> None:
    """Cancels nothing."""


def randomize(transformer: FluxTransformer2DModel) -> None:
    """Make the adapter of a fresh job do something."""
    for name, parameter in adapter_parameters(transformer).items():
        parameter.data = 0.2 * draw(name, *parameter.shape)


@pytest.mark.parametrize("size", SIZES, ids=["square", "wide"])
@pytest.mark.parametrize("changes", [{}, {"preview_guidance_scale": 0.0}, {"preview_sampling_steps": 1}])
def test_latents_are_those_of_the_pipeline(
    sampler: FluxPipeline, reference: FluxPipeline, embedding: Embedding, size: Size, changes: dict[str, float]
) -> None:
    config = CONFIG.model_copy(update=changes)
    ours_Chw = sample_latents(sampler, embedding, config, size, proceed)
    assert torch.equal(ours_Chw, theirs(reference, config, size))


def test_latents_with_an_adapter_are_those_of_the_pipeline_with_its_file(
    sampler: FluxPipeline, reference: FluxPipeline, embedding: Embedding, tmp_path: Path
) -> None:
    base_Chw = sample_latents(sampler, embedding, CONFIG, SQUARE, proceed)
    with attached(sampler.transformer, CONFIG):
        randomize(sampler.transformer)
        ours_Chw = sample_latents(sampler, embedding, CONFIG, SQUARE, proceed)
        data = peft_file(snapshot(sampler.transformer, CONFIG), CONFIG, {})
    (tmp_path / "lora.safetensors").write_bytes(data)
    reference.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    assert torch.equal(ours_Chw, theirs(reference, CONFIG, SQUARE))
    assert not torch.allclose(ours_Chw, base_Chw, atol=0.1)


@pytest.mark.parametrize("changes", [{"preview_seed": 6}, {"preview_guidance_scale": 1.0}])
def test_seed_and_guidance_decide_the_picture(
    sampler: FluxPipeline, embedding: Embedding, changes: dict[str, float]
) -> None:
    first, again, other = (
        sample_latents(sampler, embedding, config, SQUARE, proceed)
        for config in (CONFIG, CONFIG, CONFIG.model_copy(update=changes))
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)


def test_training_does_not_notice(sampler: FluxPipeline, embedding: Embedding) -> None:
    def state() -> list[tuple[object, ...]]:
        named = transformer.named_parameters()
        return [(name, id(p), p.dtype, p.device, p.requires_grad, p.grad, p._version) for name, p in named]

    transformer = sampler.transformer
    with attached(transformer, CONFIG):
        transformer.enable_gradient_checkpointing()
        before, numbers = state(), torch.random.get_rng_state()
        latents_Chw = sample_latents(sampler, embedding, CONFIG, SQUARE, proceed)
        assert state() == before
        assert torch.equal(torch.random.get_rng_state(), numbers)
        assert (transformer.training, transformer.is_gradient_checkpointing) == (True, True)
        assert not latents_Chw.requires_grad
    transformer.disable_gradient_checkpointing()


def test_a_cancellation_ends_sampling_before_the_next_step(sampler: FluxPipeline, embedding: Embedding) -> None:
    calls = 0

    def check() -> None:
        if calls == 2:
            raise InterruptedError

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    hook = sampler.transformer.register_forward_hook(count)
    with pytest.raises(InterruptedError):
        sample_latents(sampler, embedding, CONFIG, SQUARE, check)
    hook.remove()
    assert calls == 2


def test_nothing_is_printed(
    sampler: FluxPipeline, embedding: Embedding, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    sample_latents(sampler, embedding, CONFIG, SQUARE, proceed)
    captured = capfd.readouterr()
    assert (captured.out, captured.err, caplog.text) == ("", "", "")


def test_float32_adapter_on_a_bf16_base_is_sampled_as_it_is_trained(
    transformer_bf16: FluxTransformer2DModel, base_model: Path
) -> None:
    embedding = Embedding(t5_BSD=draw("t5", 1, T5_TOKENS, T5_WIDTH), clip_BD=draw("clip", 1, CLIP_WIDTH))
    seen: set[torch.dtype] = set()
    with attached(transformer_bf16, CONFIG):
        randomize(transformer_bf16)
        layers = [module for name, module in transformer_bf16.named_modules() if name.endswith("lora_A.default")]
        hooks = [layer.register_forward_hook(lambda *call: seen.add(call[-1].dtype)) for layer in layers]
        sampler = sampling_pipeline(transformer_bf16, base_model / "scheduler")
        latents_Chw = sample_latents(sampler, embedding, CONFIG, SQUARE, proceed)
        for hook in hooks:
            hook.remove()
    assert seen == {torch.bfloat16}
    assert (latents_Chw.dtype, tuple(latents_Chw.shape)) == (torch.bfloat16, (16, 8, 8))
    assert torch.isfinite(latents_Chw).all()
