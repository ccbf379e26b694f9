"""Make flux-tiny from nothing: drawings, VAE, transformer with its text encoders, guidance, the folder.

    python -m tools.flux_tiny.train --packages DIR --work DIR --out assets/flux-tiny

Each stage keeps a snapshot in `--work`; started again, the run goes on where it was killed.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer, T5TokenizerFast

from tools.flux_tiny.batches import FRAMES, encode_frame
from tools.flux_tiny.distill import distill
from tools.flux_tiny.drawings import draw_sets, read_subjects
from tools.flux_tiny.export import export
from tools.flux_tiny.scenes import Album
from tools.flux_tiny.text import Tokenizers, learn_tokenizers
from tools.flux_tiny.transformer import train_transformer
from tools.flux_tiny.vae import train_vae


def get_vae(album: Album, work: Path, steps: int) -> AutoencoderKL:
    """Train the VAE, or read the one that is done."""
    folder = work / "vae"
    if not (folder / "config.json").exists():
        train_vae(album, work / "vae.pt", steps=steps).save_pretrained(folder)
    return AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).eval().requires_grad_(False)


def get_tokenizers(album: Album, work: Path) -> Tokenizers:
    """Learn both vocabularies from captions as they are drawn, or read those that are done."""
    if not (work / "t5").exists():
        random.seed(3)
        torch.manual_seed(3)
        drawn = [caption for _ in range(1000) for scene in album.scenes(8) for caption in scene.captions]
        names = [word for s in album.subjects if not s.held_out for word in (*s.names, *s.keywords)]
        tokenizers = learn_tokenizers(drawn + 2 * names)
        tokenizers.clip.save_pretrained(work / "clip")
        tokenizers.t5.save_pretrained(work / "t5")
    return Tokenizers(
        clip=CLIPTokenizer.from_pretrained(work / "clip"), t5=T5TokenizerFast.from_pretrained(work / "t5")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder that fetch.sh filled")
    parser.add_argument("--work", type=Path, required=True, help="folder for drawings and snapshots")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pipeline")
    parser.add_argument("--vae-steps", type=int, default=4200)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--distill-steps", type=int, default=800)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    random.seed(0)
    torch.manual_seed(0)
    work: Path = arguments.work
    draw_sets(arguments.packages, work / "sets")
    album = Album(work / "sets", read_subjects(arguments.packages), held_out=False)
    vae = get_vae(album, work, arguments.vae_steps)
    tokenizers = get_tokenizers(album, work)
    latents = {f: encode_frame(album, vae, tokenizers, f, work / f"{f.width}x{f.height}.pt") for f in FRAMES}
    model = train_transformer(latents, tokenizers, work / "transformer.pt", steps=arguments.steps)
    export(work / "undistilled", model=model, vae=vae, tokenizers=tokenizers)
    student = distill(model, latents, tokenizers, work / "distill.pt", steps=arguments.distill_steps, lr=5e-4)
    export(arguments.out, model=student, vae=vae, tokenizers=tokenizers)


if __name__ == "__main__":
    main()
