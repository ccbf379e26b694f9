"""Where the memory of a training step goes, part by part: arithmetic on sizes, without torch and without a GPU.

    peak = weights + adapter + gradients + optimizer + average + activations + workspace

Nothing is counted twice: what blocks keep is given back while gradients come into being, and the optimizer steps when
all of it is gone. `activations.py` has what a block keeps. How near this comes to what GPUs showed: `docs/memory.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from services.trainer.config.choices import Optimizer
from services.trainer.config.fields import ConfigFields
from services.trainer.estimate.activations import (
    CONDITIONING,
    IMAGE,
    JOINED,
    TEXT,
    Adapted,
    Precision,
    Stream,
    kept_bytes,
    multiplied_out_bytes,
    stream_size,
)
from services.trainer.estimate.adapter_sizes import FLOAT, Matrix, adapter_matrices, optimizer_bytes
from services.trainer.estimate.architecture import Architecture, Linear

PX_A_TOKEN = 16  # an image token stands for so many px on either side
PASSING_DOUBLE, PASSING_SINGLE = 18, 52
"""Bytes for each token and each number of the width that are there for a moment while the gradient passes a block: most
where attention's result and the activations are joined in float32. Counted on the meta device, as the test does."""
LIBRARIES = 100_000_000
"""Bytes that cuBLAS and attention's kernels keep for themselves."""
CONTEXT = 600_000_000
"""Bytes of CUDA's context and of kernels once loaded, as is usual; not measured here."""
IDLE = 1.0
"""Bytes that torch's allocator takes and leaves idle between tensors, as a share of what comes and goes for a moment.
On an H200 that was 0.4 to 3, in the middle 1.2; with 1, what is recommended was enough for all of `measured.py`."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the peak, with a sentence for people."""

    name: str
    size_bytes: int
    explanation: str


@dataclass(frozen=True, kw_only=True)
class MemoryMap:
    """A job's configuration on a model: `ranks` of the adapted layers by full name, `side_px` of square images."""

    architecture: Architecture
    precision: Precision
    config: ConfigFields
    ranks: Mapping[str, int]
    side_px: int

    def parts(self) -> tuple[Part, ...]:
        """The parts of the peak, the largest first."""
        numbers = sum(matrix.numbers for matrix in self._matrices)
        found = [self._weights(), self._adapter(numbers), self._optimizer(), self._activations(), self._workspace()]
        found.append(Part(name="gradients", size_bytes=self._gradients, explanation="One float32 for each of these."))
        if self.config.ema_decay:
            text = "The moving average of the adapter, in float32."
            found.append(Part(name="average", size_bytes=FLOAT * numbers, explanation=text))
        return tuple(sorted(found, key=lambda part: -part.size_bytes))

    @property
    def peak_bytes(self) -> int:
        """Most that tensors hold at once."""
        return sum(part.size_bytes for part in self.parts())

    @property
    def recommended_bytes(self) -> int:
        """What a GPU should have."""
        return self.peak_bytes + CONTEXT + round(IDLE * self._passing)

    def _weights(self) -> Part:
        parameters = self.architecture.parameters
        text = f"The frozen base: {parameters / 1e6:,.0f} million numbers of {self.precision.size} bytes."
        return Part(name="weights", size_bytes=parameters * self.precision.size, explanation=text)

    def _adapter(self, numbers: int) -> Part:
        text = f"{numbers / 1e6:.1f} million trainable numbers in {len(self.ranks)} layers, in float32."
        return Part(name="adapter", size_bytes=FLOAT * numbers, explanation=text)

    def _optimizer(self) -> Part:
        size = optimizer_bytes(self._matrices, self.config.optimizer)
        return Part(name="optimizer", size_bytes=size, explanation=f"What {self.config.optimizer} keeps for these.")

    def _activations(self) -> Part:
        image, text = self._tokens
        where = f"{image} image and {text} text tokens a step"
        how = "the inputs of all blocks, and what one of them keeps while it is computed again"
        if not self.config.gradient_checkpointing:
            how = "what every block keeps for the backward pass"
        return Part(
            name="activations",
            size_bytes=self._kept,
            explanation=f"With {where}: {how}; less what gradients take the place of.",
        )

    def _workspace(self) -> Part:
        """What is there for a moment: in the backward pass or, with a large adapter, in the optimizer's step."""
        size = max(self._passing, self._stepping - self._kept)
        text = "What comes and goes while the gradient passes a block, or the optimizer steps."
        return Part(name="workspace", size_bytes=size, explanation=text)

    @cached_property
    def _matrices(self) -> Sequence[Matrix]:
        return adapter_matrices(self._linears, self.ranks, self.config)

    @cached_property
    def _linears(self) -> Mapping[str, Linear]:
        return self.architecture.linears()

    @property
    def _tokens(self) -> tuple[int, int]:
        """Image tokens and text tokens of a step."""
        size = self.config.batch_size
        return size * (self.side_px // PX_A_TOKEN) ** 2, size * self.architecture.text_tokens

    @property
    def _gradients(self) -> int:
        return FLOAT * sum(matrix.numbers for matrix in self._matrices)

    @property
    def _kept(self) -> int:
        """What blocks keep when the gradient is at the block that needs most."""
        blocks = [block.kept for block in self._blocks]
        if not blocks:
            return 0
        largest = max(self._blocks, key=lambda block: block.kept + block.passing).kept
        elsewhere = sum(blocks) - largest
        if self.config.gradient_checkpointing:
            width = stream_size(self.precision, self.config) * self.architecture.hidden
            elsewhere = len(blocks) * sum(self._tokens) * width
        return largest + max(elsewhere - self._gradients, 0)

    @property
    def _passing(self) -> int:
        return LIBRARIES + max((block.passing for block in self._blocks), default=0)

    @property
    def _stepping(self) -> int:
        """What the optimizer needs while it steps: torch's AdamW and its kin take the roots of all matrices at once."""
        return self._gradients if self.config.optimizer in (Optimizer.ADAMW, Optimizer.ADAMW_SCHEDULE_FREE) else 0

    @cached_property
    def _blocks(self) -> Sequence[_Block]:
        """The blocks that the gradient passes: from the first that is adapted, or reads what is."""
        image, text = self._tokens
        doubles = [
            self._block(f"transformer_blocks.{number}.", {IMAGE: image, TEXT: text}, PASSING_DOUBLE)
            for number in range(self.architecture.double_blocks)
        ]
        singles = [
            self._block(f"single_transformer_blocks.{number}.", {JOINED: image + text}, PASSING_SINGLE)
            for number in range(self.architecture.single_blocks)
        ]
        blocks = [*doubles, *singles]
        if any(name.startswith((CONDITIONING, "x_embedder", "context_embedder")) for name in self.ranks):
            return blocks
        first = next((number for number, block in enumerate(blocks) if block.adapted), len(blocks))
        return blocks[first:]

    def _block(self, prefix: str, streams: Mapping[Stream, int], passing: int) -> _Block:
        ranks = {name.removeprefix(prefix): rank for name, rank in self.ranks.items() if name.startswith(prefix)}
        adapted = Adapted(
            layers={name: self._linears[prefix + name] for name in ranks},
            ranks=ranks,
            modulated=any(name.startswith(CONDITIONING) for name in self.ranks),
        )
        hidden = self.architecture.hidden
        return _Block(
            adapted=bool(ranks),
            kept=kept_bytes(streams, hidden, adapted, self.precision, self.config),
            passing=passing * hidden * sum(streams.values()) + multiplied_out_bytes(adapted.layers, self.config),
        )


@dataclass(frozen=True, kw_only=True)
class _Block:
    """Bytes of one block: kept for the backward pass, and needed beside while the gradient passes it."""

    adapted: bool
    kept: int
    passing: int
