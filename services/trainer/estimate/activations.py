"""What autograd keeps of a block for the backward pass: of a frozen base, with an adapter on some of its layers.

Under autocast, as on a GPU, norms compute in float32 and keep a float32 copy of their input; a linear layer makes a
bf16 copy of its input for itself, which is kept only where an adapter reads it. Attention keeps queries, keys, values
and its result; the activation function keeps its input. Frozen weights keep nothing of theirs. A test repeats a step on
the meta device and counts what is held.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from services.trainer.config.choices import AdapterType
from services.trainer.config.fields import ConfigFields
from services.trainer.estimate.architecture import MLP_RATIO, Linear

FLOAT = 4


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Bytes of a number of the base's weights, which is also that of what its linear layers put out."""

    size: int
    autocast: bool
    """Whether each linear layer copies its input to bf16."""


BF16 = Precision(size=2, autocast=True)
FP32 = Precision(size=4, autocast=False)


@dataclass(frozen=True, kw_only=True)
class Stream:
    """A stream of tokens through a block, by the names that its layers have inside the block."""

    readers: tuple[tuple[str, ...], ...]
    """Layers that read a tensor of the stream's width, those of one tensor together."""
    up: str
    """The layer before the activation function."""
    down: str
    """The layer after it."""
    down_inputs: int
    """What that one reads, in widths of the stream."""
    modulation: str
    norms: int
    """Norms of the whole width; those of queries and keys come beside."""

    @property
    def layers(self) -> frozenset[str]:
        """Names of all its layers that act on tokens."""
        return frozenset(name for group in self.readers for name in group) | {self.down}


IMAGE = Stream(
    readers=(("attn.to_q", "attn.to_k", "attn.to_v"), ("attn.to_out.0",), ("ff.net.0.proj",)),
    up="ff.net.0.proj",
    down="ff.net.2",
    down_inputs=MLP_RATIO,
    modulation="norm1.linear",
    norms=2,
)
TEXT = Stream(
    readers=(
        ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        ("attn.to_add_out",),
        ("ff_context.net.0.proj",),
    ),
    up="ff_context.net.0.proj",
    down="ff_context.net.2",
    down_inputs=MLP_RATIO,
    modulation="norm1_context.linear",
    norms=2,
)
JOINED = Stream(
    readers=(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),),
    up="proj_mlp",
    down="proj_out",
    down_inputs=1 + MLP_RATIO,
    modulation="norm.linear",
    norms=1,
)
CONDITIONING = "time_text_embed."
"""Begin of the names of layers through whose gradient every modulation has one."""


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """The adapted layers of one block: each with its size and rank, by the names inside the block."""

    layers: Mapping[str, Linear]
    ranks: Mapping[str, int]
    modulated: bool = False
    """Whether the gradient of its modulation is asked for by an adapter before the block."""


def kept_bytes(
    streams: Mapping[Stream, int], hidden: int, adapted: Adapted, precision: Precision, config: ConfigFields
) -> int:
    """What a block keeps, given the tokens of each of its streams."""
    attention = 4 * precision.size * sum(streams.values())
    kept = hidden * (
        attention + sum(count * _kept(stream, adapted, precision, config) for stream, count in streams.items())
    )
    for stream, count in streams.items():
        for name in stream.layers & adapted.ranks.keys():
            kept += _of_adapter(adapted.layers[name], adapted.ranks[name], count, precision, config)
    return kept


def stream_size(precision: Precision, config: ConfigFields) -> int:
    """Bytes of a number that goes from block to block: LoKr and LoHa turn the stream to float32."""
    return FLOAT if config.adapter_type in (AdapterType.LOKR, AdapterType.LOHA) else precision.size


def multiplied_out_bytes(layers: Mapping[str, Linear], config: ConfigFields) -> int:
    """Matrices of a whole layer's size that come and go while an adapter is multiplied out."""
    largest = max((layer.outputs * layer.inputs for layer in layers.values()), default=0)
    widest = max((layer.inputs for layer in layers.values()), default=0)
    match config.adapter_type:
        case AdapterType.LORA:
            return 0
        case AdapterType.DORA:  # peft reads the product of both matrices off a unit matrix, in float32 and in bf16
            return 6 * widest**2
        case AdapterType.LOKR:
            return FLOAT * largest
        case AdapterType.LOHA:
            return 3 * FLOAT * largest


def _kept(stream: Stream, adapted: Adapted, precision: Precision, config: ConfigFields) -> int:
    """Bytes for each token and each number of the width."""
    ranks = adapted.ranks.keys()
    size = FLOAT * (stream.norms + 2)  # inputs of its norms, and of those of queries and keys
    for group in stream.readers:
        read = len(ranks & set(group))
        size += precision.size * (read if precision.autocast else min(read, 1))
    size += MLP_RATIO * (stream_size(precision, config) if stream.up in ranks else precision.size)
    size += stream.down_inputs * precision.size * (stream.down in ranks)
    if adapted.modulated or stream.modulation in ranks:  # what is scaled, and what goes through the gates
        size += stream.norms * (FLOAT + precision.size)
    return size


def _of_adapter(layer: Linear, rank: int, tokens: int, precision: Precision, config: ConfigFields) -> int:
    """What an adapter keeps beside its input: what is between its matrices, and what its kind needs."""
    match config.adapter_type:
        case AdapterType.LOKR | AdapterType.LOHA:  # the whole weight that they stand for
            return layer.outputs * layer.inputs * precision.size
        case AdapterType.LORA | AdapterType.DORA:
            mask = tokens * layer.inputs * bool(config.adapter_dropout)
            outputs = (
                2 * tokens * layer.outputs * (config.adapter_type is AdapterType.DORA)
            )  # for the lengths' gradient
            return mask + (tokens * rank + outputs) * precision.size
