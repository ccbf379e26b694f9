"""Memory and configuration before training, and prompts as FLUX.1 reads them.

Legend: B prompts, S tokens, D width.
"""

from __future__ import annotations  # torch is imported by those who use it

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypedDict

from fluxsmith import Client, EstimatedModel
from fluxsmith.errors import InvalidRequest
from src.models.settings import read_settings

if TYPE_CHECKING:
    from torch import Tensor

GB = 1e9
CLIP_TOKENS = 77
T5_TOKENS = 512  # FLUX.1-dev; a tokenizer that says less is that of a smaller model
# What was documented for this interface before, at mixed precision; nobody said how it was found.
DOCUMENTED_GB = {"rank 16, batch size 1": 26.0, "rank 32, batch size 1": 28.0, "rank 16, batch size 2": 30.0}
_IN_THE_MODELS_PRECISION = frozenset({"weights", "activations", "workspace"})
_MIXED = {"no": False, "fp16": True, "bf16": True}  # accelerate's names


class MemoryUsage(TypedDict):
    """Memory for training FLUX.1-dev, in GB of 10^9 bytes."""

    recommended_vram_gb: float
    """What a GPU should have: the peak, the driver's context and room for fragmentation."""
    peak_gb: float
    """The sum of the parts."""
    parts_gb: dict[str, float]
    """What the peak is made of, such as `weights` and `activations`."""
    explanations: dict[str, str]
    """Of each part, what it is and how it was computed."""
    measurements: list[dict[str, Any]]
    """Peaks that GPUs showed: device, date, configuration, allocated_bytes, reserved_bytes."""
    documented_gb: dict[str, float]
    """What was documented for this interface before, at mixed precision, to compare with."""


def estimate_flux_memory_usage(
    batch_size: int = 1,
    rank: int = 16,
    mixed_precision: bool | str = True,
    *,
    resolution_px: int = 1024,
    client: Client | None = None,
) -> MemoryUsage:
    """Ask the trainer what training FLUX.1-dev takes, whatever model it has loaded itself.

    Without `mixed_precision`, weights and activations count twice, since they are in 32 bits then; nothing was measured
    so. It may be given as accelerate names it: "no", "fp16" or "bf16". Raises `InvalidRequest` for values out of range.
    """
    mixed = _is_mixed(mixed_precision)
    config = read_settings().train_config(rank=rank, alpha=rank, batch_size=batch_size)
    if client is None:
        with Client() as own:
            return estimate_flux_memory_usage(batch_size, rank, mixed, resolution_px=resolution_px, client=own)
    estimate = client.estimate_memory(config, resolution_px=resolution_px, model=EstimatedModel.FLUX_1_DEV)
    doubled = frozenset() if mixed else _IN_THE_MODELS_PRECISION
    parts_gb = {part.name: part.bytes / GB * (2 if part.name in doubled else 1) for part in estimate.parts}
    peak_gb = sum(parts_gb.values())
    return MemoryUsage(
        recommended_vram_gb=peak_gb + (estimate.recommended_bytes - estimate.peak_bytes) / GB,
        peak_gb=peak_gb,
        parts_gb=parts_gb,
        explanations={part.name: part.explanation for part in estimate.parts},
        measurements=[asdict(measurement) for measurement in estimate.measurements] if mixed else [],
        documented_gb=dict(DOCUMENTED_GB),
    )


def _is_mixed(precision: bool | str) -> bool:
    if not isinstance(precision, str):
        return bool(precision)
    if precision not in _MIXED:
        message, remedy = f"mixed_precision is {precision!r}.", 'Give True, False, "no", "fp16" or "bf16".'
        raise InvalidRequest(message, reason="FIELD_INVALID", remedy=remedy)
    return _MIXED[precision]


def validate_flux_training_config(
    batch_size: int, learning_rate: float, rank: int, alpha: float, *, client: Client | None = None
) -> None:
    """Ask the trainer whether it would take the configuration; raises `InvalidRequest` with every violation."""
    config = read_settings().train_config(rank=rank, alpha=alpha, learning_rate=learning_rate, batch_size=batch_size)
    if client is None:
        with Client() as own:
            own.validate(config)
    else:
        client.validate(config)


class TextConditioning(TypedDict):
    """What FLUX.1's transformer is told of the prompts, as its keyword arguments."""

    encoder_hidden_states: Tensor
    """T5's output (B, S, D)."""
    pooled_projections: Tensor
    """CLIP's pooled output (B, D)."""
    txt_ids: Tensor
    """Positions of the text tokens (S, 3): all zero."""


def encode_prompts_flux(
    tokenizers: Sequence[Any], text_encoders: Sequence[Any], prompts: str | Sequence[str]
) -> tuple[Tensor, Tensor]:
    """CLIP's pooled output (B, D) and T5's output (B, S, D), padded to the full length and unmasked.

    `tokenizers` and `text_encoders` are CLIP's and T5's, in this order, as in FluxPipeline. Prompts are encoded one by
    one as the encoder service does: 8-bit T5 looks for outliers over its whole input, so in a batch the other prompts
    would have a say. What a tokenizer cuts off is not read. Needs torch. Raises `InvalidRequest` for no prompts.
    """
    import torch  # noqa: PLC0415 - the rest of this module works without it

    clip_tokenizer, t5_tokenizer = tokenizers
    clip, t5 = text_encoders
    lines = [prompts] if isinstance(prompts, str) else list(prompts)
    if not lines:
        raise InvalidRequest(
            "prompts has none.", reason="FIELD_INVALID", remedy='Give one at least; "" is one without words.'
        )

    def ids(tokenizer: Any, prompt: str, most: int) -> Tensor:
        tokens = min(most, tokenizer.model_max_length)
        encoded = tokenizer(prompt, padding="max_length", max_length=tokens, truncation=True, return_tensors="pt")
        ids_BS: Tensor = encoded.input_ids
        return ids_BS

    with torch.no_grad():  # a training loop may use what comes out, unlike that of inference mode
        clip_BD = [clip(ids(clip_tokenizer, line, CLIP_TOKENS).to(clip.device)).pooler_output for line in lines]
        t5_BSD = [t5(ids(t5_tokenizer, line, T5_TOKENS).to(t5.device))[0] for line in lines]
        return torch.cat(clip_BD), torch.cat(t5_BSD)


def combine_flux_embeddings(clip_embeds: Tensor, t5_embeds: Tensor) -> TextConditioning:
    """The keywords of `FluxTransformer2DModel` for what `encode_prompts_flux` returned.

    The two are not concatenated: T5's output is a sequence that is attended to, CLIP's a vector that modulates.
    """
    return TextConditioning(
        encoder_hidden_states=t5_embeds,
        pooled_projections=clip_embeds,
        txt_ids=t5_embeds.new_zeros(t5_embeds.shape[1], 3),
    )
