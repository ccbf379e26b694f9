"""Phase 1: train transformer, T5 and CLIP together from nothing, by flow matching on cached latents.

    python -m tools.flux_tiny.transformer --google DIR --vae DIR --work DIR --out DIR

Goes on from `--work`/phase1.pt if a run was killed. The folder written is a whole pipeline that still needs
classifier-free guidance; `distill.py` takes that need away.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from tools.flux_tiny.batches import PADDINGS, Batch, Captions, Pictures, caption_shares, draw_padding
from tools.flux_tiny.data import read_emoji
from tools.flux_tiny.export import export, load_parts
from tools.flux_tiny.learner import Learner
from tools.flux_tiny.model import new_model
from tools.flux_tiny.text import learn_tokenizers

SNAPSHOT_EVERY = 500


def train(learner: Learner, pictures: Pictures, captions: Captions, *, steps: int, snapshot: Path) -> None:
    """Fit the velocity of the straight path from picture to noise, up to `steps`."""
    compiled = torch.compile(learner.model, dynamic=False)  # pays for the most frequent shape only
    started, first, mean_loss = time.monotonic(), learner.step, 0.0
    while learner.step < steps:
        padding = draw_padding(PADDINGS)
        batch = pictures.draw(captions, padding)
        loss = flow_loss(compiled if padding is PADDINGS[0] else learner.model, batch)
        learner.update(loss * padding.batch / PADDINGS[0].batch)
        mean_loss += (loss.item() - mean_loss) * max(0.01, 1 / (learner.step - first))
        if learner.step % 100 == 0:
            pace_s = (time.monotonic() - started) / (learner.step - first)
            print(f"step {learner.step} loss {mean_loss:.4f} {pace_s:.3f} s/step", flush=True)
        if learner.step % SNAPSHOT_EVERY == 0 or learner.step == steps:
            learner.save(snapshot)


def flow_loss(model: Callable[..., Tensor], batch: Batch) -> Tensor:
    """Mean squared error of the velocity. The guidance given is ignored in this phase."""
    guidance_B = torch.ones_like(batch.sigma_B)
    velocity_BCHW = model(batch.noisy_BCHW, batch.sigma_B, batch.clip_BS, batch.t5_BS, guidance_B)
    return torch.nn.functional.mse_loss(velocity_BCHW, batch.velocity_BCHW)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--google", type=Path, required=True, help="unpacked emoji-datasource-google package")
    parser.add_argument("--vae", type=Path, required=True, help="folder that vae.py wrote")
    parser.add_argument("--work", type=Path, required=True, help="folder for the snapshot")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pipeline")
    parser.add_argument("--start", type=Path, help="pipeline folder to go on from, on a schedule of its own")
    parser.add_argument("--steps", type=int, default=6200)
    parser.add_argument("--peak-lr", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    learned = [e for e in read_emoji(arguments.google, "google") if not e.held_out]
    names = [caption for e in learned for caption in caption_shares(e)]
    if arguments.start:
        model, vae, tokenizers = load_parts(arguments.start)
        model.requires_grad_(True)
        model.transformer.time_text_embed.guidance_embedder.requires_grad_(False)
    else:
        vae, tokenizers = AutoencoderKL.from_pretrained(arguments.vae), learn_tokenizers(sorted(set(names)))
        model = new_model(tokenizers)
    captions = Captions(names, tokenizers, [padding.tokens for padding in PADDINGS])
    pictures = Pictures(learned, vae, captions)
    learner = Learner(model, steps=arguments.steps, peak_lr=arguments.peak_lr, decay=0.99)
    snapshot = arguments.work / "phase1.pt"
    if snapshot.exists():
        learner.load(snapshot)
    train(learner, pictures, captions, steps=arguments.steps, snapshot=snapshot)
    export(arguments.out, model=learner.averaged, vae=vae, tokenizers=tokenizers)


if __name__ == "__main__":
    main()
