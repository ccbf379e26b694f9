"""The sizes of a FLUX transformer, from its `config.json` by arithmetic: no weights, no torch.

Source: diffusers' `FluxTransformer2DModel`, whose layers a test counts beside these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from services.common.base_check import DEFAULTS, FLUX_1_DEV_CONFIG

TIME_CHANNELS = 256  # of the sinusoids that sigma and guidance become
MLP_RATIO = 4


class Linear(NamedTuple):
    """A linear layer: the numbers that go out of it and into it for each token."""

    outputs: int
    inputs: int


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A FLUX transformer and the length of the captions that it reads."""

    hidden: int
    """Width of the stream of tokens."""
    head_width: int
    double_blocks: int
    """Blocks with an image stream and a text stream, which run first."""
    single_blocks: int
    """Blocks in which both streams are one."""
    channels: int
    """Numbers that an image token is made of: latent channels times 2 x 2 places."""
    output_channels: int
    t5_width: int
    clip_width: int
    guidance_embeds: bool
    """Whether it has an embedding of the guidance scale."""
    text_tokens: int
    """Tokens of a caption, padding included."""

    @staticmethod
    def of(config: Mapping[str, Any], *, text_tokens: int) -> Architecture:
        """The one that a `config.json` describes, where diffusers' defaults stand for what it does not say."""
        config = {**DEFAULTS, **config}
        return Architecture(
            hidden=config["num_attention_heads"] * config["attention_head_dim"],
            head_width=config["attention_head_dim"],
            double_blocks=config["num_layers"],
            single_blocks=config["num_single_layers"],
            channels=config["in_channels"],
            output_channels=config["patch_size"] ** 2 * (config["out_channels"] or config["in_channels"]),
            t5_width=config["joint_attention_dim"],
            clip_width=config["pooled_projection_dim"],
            guidance_embeds=config["guidance_embeds"],
            text_tokens=text_tokens,
        )

    def linears(self) -> dict[str, Linear]:
        """Every linear layer that a job may adapt, by its full name."""
        layers = dict(self._outside_of_blocks())
        for block in range(self.double_blocks):
            layers |= {f"transformer_blocks.{block}.{name}": layer for name, layer in self._double().items()}
        for block in range(self.single_blocks):
            layers |= {f"single_transformer_blocks.{block}.{name}": layer for name, layer in self._single().items()}
        return layers

    @property
    def parameters(self) -> int:
        """Numbers that the weights hold, biases and norms included."""
        norms = self.head_width * (4 * self.double_blocks + 2 * self.single_blocks)
        guidance = (
            [Linear(self.hidden, TIME_CHANNELS), Linear(self.hidden, self.hidden)] if self.guidance_embeds else []
        )
        layers = [*self.linears().values(), *guidance]
        return norms + sum(layer.outputs * (layer.inputs + 1) for layer in layers)

    def _outside_of_blocks(self) -> Iterator[tuple[str, Linear]]:
        width = self.hidden
        yield "x_embedder", Linear(width, self.channels)
        yield "context_embedder", Linear(width, self.t5_width)
        for part, inputs in (("timestep_embedder", TIME_CHANNELS), ("text_embedder", self.clip_width)):
            yield f"time_text_embed.{part}.linear_1", Linear(width, inputs)
            yield f"time_text_embed.{part}.linear_2", Linear(width, width)
        yield "norm_out.linear", Linear(2 * width, width)
        yield "proj_out", Linear(self.output_channels, width)

    def _double(self) -> dict[str, Linear]:
        width, wide = self.hidden, MLP_RATIO * self.hidden
        square, up, down = Linear(width, width), Linear(wide, width), Linear(width, wide)
        attention = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
        return {
            "norm1.linear": Linear(6 * width, width),
            "norm1_context.linear": Linear(6 * width, width),
            **{f"attn.{name}": square for name in attention},
            "ff.net.0.proj": up,
            "ff.net.2": down,
            "ff_context.net.0.proj": up,
            "ff_context.net.2": down,
        }

    def _single(self) -> dict[str, Linear]:
        width, wide = self.hidden, MLP_RATIO * self.hidden
        return {
            "norm.linear": Linear(3 * width, width),
            **{f"attn.{name}": Linear(width, width) for name in ("to_q", "to_k", "to_v")},
            "proj_mlp": Linear(wide, width),
            "proj_out": Linear(width, width + wide),
        }


FLUX_1_DEV = Architecture.of(FLUX_1_DEV_CONFIG, text_tokens=512)
