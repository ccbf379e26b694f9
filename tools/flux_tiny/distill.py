"""Distil guidance: `guidance_scale=3.5` alone, one forward a step, shall give the good pictures.

The teacher is the trained model with classifier-free guidance against the empty caption:

    target = v_empty + g * (v_caption - v_empty)        g uniform in 1..5

In a fifth of the samples the guidance embedding is left out and the target is the plain v_caption, so that training an
adapter in `bypass` mode starts from a model that knows that mode.

Legend: B batch, C latent channels, H/W latent height and width, E embedding width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from tools.flux_tiny.batches import (
    CLIP_TRAINED_TOKENS,
    T5_TRAINED_TOKENS,
    USUAL,
    Batch,
    Frame,
    Latents,
    draw_kind,
    empty_ids,
)
from tools.flux_tiny.learner import Learner
from tools.flux_tiny.model import TinyFlux
from tools.flux_tiny.text import Tokenizers
from tools.flux_tiny.transformer import FIRST

LEAST_GUIDANCE, MOST_GUIDANCE = 1.0, 5.0
BYPASS_SHARE = 0.2


class GuidanceGate:
    """Lets the guidance embedding through for the samples marked in `open_B`, for the others it is left out."""

    def __init__(self, guidance_embedder: nn.Module) -> None:
        self.open_B = torch.ones(0)
        self._hook = guidance_embedder.register_forward_hook(self._apply)

    def close(self) -> None:
        """Take the gate away: every embedding passes again."""
        self._hook.remove()

    def _apply(self, _module: nn.Module, _arguments: object, embedded_BE: Tensor) -> Tensor:
        return embedded_BE * rearrange(self.open_B, "b -> b 1").to(embedded_BE.dtype)


def distill(
    teacher: TinyFlux, latents: dict[Frame, Latents], tokenizers: Tokenizers, snapshot: Path, *, steps: int, lr: float
) -> TinyFlux:
    """Fit a copy of `teacher` to the guided teacher."""
    student = copy.deepcopy(teacher).train().requires_grad_(True)
    teacher = teacher.eval().requires_grad_(False)
    learner = Learner(student, snapshot, steps=steps, lr=lr, average=0.98, first=FIRST)
    gate = GuidanceGate(student.transformer.time_text_embed.guidance_embedder)
    compiled_student = torch.compile(student, dynamic=False)  # pays for the most frequent shape only
    compiled_teacher = torch.compile(teacher, dynamic=False)
    empty = empty_ids(tokenizers)
    while learner.done < 1:
        kind = draw_kind()
        fast = kind is USUAL
        batch = latents[kind.frame].draw(kind, empty)
        gate.open_B = (torch.rand(kind.batch) >= BYPASS_SHARE).float()
        guidance_B = LEAST_GUIDANCE + (MOST_GUIDANCE - LEAST_GUIDANCE) * torch.rand(kind.batch)
        scale_B = torch.where(gate.open_B > 0, guidance_B, 1.0)
        target_BCHW = guided_velocity(compiled_teacher if fast else teacher, batch, empty, scale_B)
        model = compiled_student if fast else student
        velocity_BCHW = model(batch.noisy_BCHW, batch.sigma_B, batch.clip_BS, batch.t5_BS, guidance_B)
        loss = nn.functional.mse_loss(velocity_BCHW, target_BCHW)
        learner.update(loss * (kind.batch / USUAL.batch) ** 0.5)
    gate.close()
    return learner.averaged.eval()


@torch.no_grad()
def guided_velocity(teacher: Callable[..., Tensor], batch: Batch, empty: Tensor, guidance_B: Tensor) -> Tensor:
    """The teacher's guided estimate, always at the shortest caption length; the student may get a longer one."""
    noisy_BCHW, sigma_B = batch.noisy_BCHW, batch.sigma_B
    short_BS = batch.t5_BS[:, :T5_TRAINED_TOKENS]
    caption_BCHW = teacher(noisy_BCHW, sigma_B, batch.clip_BS, short_BS, guidance_B)
    empty_clip_BS = empty[:CLIP_TRAINED_TOKENS].expand_as(batch.clip_BS)
    empty_t5_BS = empty[CLIP_TRAINED_TOKENS:].expand_as(short_BS)
    empty_BCHW = teacher(noisy_BCHW, sigma_B, empty_clip_BS, empty_t5_BS, guidance_B)
    return torch.lerp(empty_BCHW, caption_BCHW, rearrange(guidance_B, "b -> b 1 1 1"))
