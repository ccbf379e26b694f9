"""Phase 2: guidance distillation. `guidance_scale=3.5` alone, one forward a step, shall give the good pictures.

    python -m tools.flux_tiny.distill --google DIR --base DIR --work DIR --out DIR

The teacher is phase 1 with classifier-free guidance against the empty caption:

    target = v_empty + g * (v_caption - v_empty)        g uniform in 1..5

In a fifth of the samples the guidance embedding is left out and the target is the plain v_caption, so that training an
adapter in `bypass` mode (see docs of the trainer) starts from a model that knows that mode.

Legend: B batch, C latent channels, H/W latent height and width, E embedding width.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from tools.flux_tiny.batches import Batch, Captions, Padding, Pictures, caption_shares, draw_padding
from tools.flux_tiny.data import read_emoji
from tools.flux_tiny.export import export, load_parts
from tools.flux_tiny.learner import Learner
from tools.flux_tiny.model import TinyFlux

LEAST_GUIDANCE, MOST_GUIDANCE = 1.0, 5.0
BYPASS_SHARE = 0.2
SNAPSHOT_EVERY = 200
SHORT = Padding(tokens=16, batch=64, share=0.88)
PADDINGS = (
    SHORT,
    Padding(tokens=64, batch=32, share=0.04),
    Padding(tokens=128, batch=16, share=0.04),
    Padding(tokens=512, batch=8, share=0.04),
)


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
    learner: Learner, teacher: TinyFlux, pictures: Pictures, captions: Captions, *, steps: int, snapshot: Path
) -> None:
    """Fit the student in `learner` to the guided teacher, up to `steps`."""
    gate = GuidanceGate(learner.model.transformer.time_text_embed.guidance_embedder)
    compiled_student = torch.compile(learner.model, dynamic=False)  # pays for the most frequent shape only
    compiled_teacher = torch.compile(teacher, dynamic=False)
    started, first, mean_loss = time.monotonic(), learner.step, 0.0
    while learner.step < steps:
        padding = draw_padding(PADDINGS)
        student, guide = (compiled_student, compiled_teacher) if padding is SHORT else (learner.model, teacher)
        batch = pictures.draw(captions, padding)
        gate.open_B = (torch.rand(padding.batch) >= BYPASS_SHARE).float()
        guidance_B = LEAST_GUIDANCE + (MOST_GUIDANCE - LEAST_GUIDANCE) * torch.rand(padding.batch)
        target_BCHW = guided_velocity(guide, batch, captions, torch.where(gate.open_B > 0, guidance_B, 1.0))
        velocity_BCHW = student(batch.noisy_BCHW, batch.sigma_B, batch.clip_BS, batch.t5_BS, guidance_B)
        loss = nn.functional.mse_loss(velocity_BCHW, target_BCHW)
        learner.update(loss * math.sqrt(padding.batch / SHORT.batch))
        mean_loss += (loss.item() - mean_loss) * max(0.02, 1 / (learner.step - first))
        if learner.step % 50 == 0:
            pace_s = (time.monotonic() - started) / (learner.step - first)
            print(f"step {learner.step} loss {mean_loss:.4f} {pace_s:.3f} s/step", flush=True)
        if learner.step % SNAPSHOT_EVERY == 0 or learner.step == steps:
            learner.save(snapshot)


@torch.no_grad()
def guided_velocity(teacher: Callable[..., Tensor], batch: Batch, captions: Captions, guidance_B: Tensor) -> Tensor:
    """The teacher's guided estimate, always at the shortest caption length; the student may get a longer one."""
    short_KS = captions.t5_KS[SHORT.tokens]
    noisy_BCHW, sigma_B = batch.noisy_BCHW, batch.sigma_B
    caption_BCHW = teacher(noisy_BCHW, sigma_B, batch.clip_BS, short_KS[batch.caption_B], guidance_B)
    nothing_B = torch.zeros_like(batch.caption_B)
    empty_BCHW = teacher(noisy_BCHW, sigma_B, captions.clip_KS[nothing_B], short_KS[nothing_B], guidance_B)
    return torch.lerp(empty_BCHW, caption_BCHW, rearrange(guidance_B, "b -> b 1 1 1"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--google", type=Path, required=True, help="unpacked emoji-datasource-google package")
    parser.add_argument("--base", type=Path, required=True, help="folder that transformer.py wrote")
    parser.add_argument("--work", type=Path, required=True, help="folder for the snapshot")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pipeline")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--peak-lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    learned = [e for e in read_emoji(arguments.google, "google") if not e.held_out]
    student, vae, tokenizers = load_parts(arguments.base)
    teacher = copy.deepcopy(student).eval().requires_grad_(False)
    student.requires_grad_(True)
    names = [caption for e in learned for caption in caption_shares(e)]
    captions = Captions(names, tokenizers, [padding.tokens for padding in PADDINGS])
    pictures = Pictures(learned, vae, captions)
    learner = Learner(student, steps=arguments.steps, peak_lr=arguments.peak_lr, decay=0.98)
    snapshot = arguments.work / "phase2.pt"
    if snapshot.exists():
        learner.load(snapshot)
    distill(learner, teacher, pictures, captions, steps=arguments.steps, snapshot=snapshot)
    export(arguments.out, model=learner.averaged, vae=vae, tokenizers=tokenizers)


if __name__ == "__main__":
    main()
