"""Look at flux-tiny and measure it: `samples.png`, and a model card (`README.md`) with the figures.

    python -m tools.flux_tiny.evaluate --google DIR --folder assets/flux-tiny --recognisable 12

The pictures come from the plain FluxPipeline. Look at them first, then give the number of them that a stranger would
recognise as `--recognisable`.

Legend: B batch, N pictures, C latent channels, H/W latent height and width, S tokens.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import FluxPipeline
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tools.flux_tiny.batches import CLIP_TRAINED_TOKENS, token_ids
from tools.flux_tiny.card import Measured, write_card
from tools.flux_tiny.data import Emoji, read_emoji
from tools.flux_tiny.distill import GuidanceGate
from tools.flux_tiny.flow import interpolate, predict_velocity, to_model_space
from tools.flux_tiny.model import encode
from tools.flux_tiny.vae import as_tensor, encode_all, psnr_db

CAPTIONS = (
    "red apple", "banana", "strawberry", "slice of pizza", "dog face", "cat face", "frog face", "penguin",
    "rose", "cactus", "house building", "rocket", "automobile", "umbrella", "soccer ball", "grinning face",
)  # fmt: skip
GUIDANCE = 3.5
STEPS = 28
SEED = 0
SCALE = 3
COLUMNS = 8
LABEL_PX = 22
SIGMAS = (0.1, 0.3, 0.5, 0.7, 0.9)


def draw_samples(pipeline: FluxPipeline, tokens: int) -> Image.Image:
    """One picture of each caption, the first seed each time, captions written underneath."""
    pictures = [
        pipeline(
            caption,
            height=64,
            width=64,
            guidance_scale=GUIDANCE,
            num_inference_steps=STEPS,
            max_sequence_length=tokens,
            generator=torch.Generator().manual_seed(SEED),
        ).images[0]
        for caption in CAPTIONS
    ]
    return contact_sheet(pictures, CAPTIONS)


def contact_sheet(pictures: list[Image.Image], captions: tuple[str, ...]) -> Image.Image:
    """Pictures in rows of COLUMNS, enlarged SCALE times, each over its caption."""
    width_px = pictures[0].width * SCALE
    height_px = pictures[0].height * SCALE + LABEL_PX
    sheet = Image.new("RGB", (width_px * COLUMNS, height_px * -(-len(pictures) // COLUMNS)), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=14)
    for place, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left, top = place % COLUMNS * width_px, place // COLUMNS * height_px
        sheet.paste(picture.resize((width_px, width_px), Image.Resampling.LANCZOS), (left, top))
        pen.text((left + width_px / 2, top + width_px), caption, fill="black", font=font, anchor="ma")
    return sheet


@torch.no_grad()
def flow_loss(pipeline: FluxPipeline, emoji: list[Emoji], captions: list[str], tokens: int) -> float:
    """Mean squared velocity error with guidance left out, (sigma, noise) the same every time."""
    clean_NCHW = to_model_space(encode_all(pipeline.vae, as_tensor(emoji))[0], pipeline.vae)
    clip_NS = token_ids(pipeline.tokenizer, captions, CLIP_TRAINED_TOKENS)
    t5_NS = token_ids(pipeline.tokenizer_2, captions, tokens)
    noise_NCHW = torch.randn(clean_NCHW.shape, generator=torch.Generator().manual_seed(SEED))
    gate = GuidanceGate(pipeline.transformer.time_text_embed.guidance_embedder)
    losses: list[Tensor] = []
    for sigma in SIGMAS:
        for part_B in torch.arange(len(emoji)).split(32):
            sigma_B = torch.full((len(part_B),), sigma)
            gate.open_B = torch.zeros(len(part_B))
            noisy_BCHW = interpolate(clean_NCHW[part_B], noise_NCHW[part_B], sigma_B)
            condition = encode(pipeline.text_encoder, pipeline.text_encoder_2, clip_NS[part_B], t5_NS[part_B])
            guidance_B = torch.ones(len(part_B))
            velocity_BCHW = predict_velocity(pipeline.transformer, noisy_BCHW, sigma_B, condition, guidance_B)
            error_BCHW = velocity_BCHW - (noise_NCHW[part_B] - clean_NCHW[part_B])
            losses.append(rearrange(error_BCHW, "b c h w -> b (c h w)").square().mean(1))
    gate.close()
    return torch.cat(losses).mean().item()


def measure(pipeline: FluxPipeline, emoji: list[Emoji], recognisable: int) -> Measured:
    """All figures of the card. The training part is as many drawings as are held out, none of them skin tones."""
    unseen = [e for e in emoji if e.held_out]
    learned = [e for e in emoji if not e.held_out and not e.is_variant]
    learned = learned[:: len(learned) // len(unseen)][: len(unseen)]
    tokens = pipeline.tokenizer_2.model_max_length
    names, learned_names = [e.captions[0] for e in unseen], [e.captions[0] for e in learned]
    return Measured(
        psnr_db=psnr_db(pipeline.vae, as_tensor(unseen)),
        loss_held_out=flow_loss(pipeline, unseen, names, tokens),
        loss_held_out_empty=flow_loss(pipeline, unseen, [""] * len(unseen), tokens),
        loss_held_out_512=flow_loss(pipeline, unseen, names, 512),
        loss_learned=flow_loss(pipeline, learned, learned_names, tokens),
        loss_learned_empty=flow_loss(pipeline, learned, [""] * len(learned), tokens),
        held_out=len(unseen),
        learned=sum(not e.held_out for e in emoji),
        recognisable=recognisable,
        shown=len(CAPTIONS),
        tokens=tokens,
        parameters={
            "transformer": pipeline.transformer.num_parameters(),
            "vae": pipeline.vae.num_parameters(),
            "text_encoder": pipeline.text_encoder.num_parameters(),
            "text_encoder_2": pipeline.text_encoder_2.num_parameters(),
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--google", type=Path, required=True, help="unpacked emoji-datasource-google package")
    parser.add_argument("--folder", type=Path, required=True, help="the pipeline; samples.png and README.md go here")
    parser.add_argument("--recognisable", type=int, help="how many samples are plain to see; writes the card")
    arguments = parser.parse_args()
    pipeline = FluxPipeline.from_pretrained(arguments.folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    draw_samples(pipeline, pipeline.tokenizer_2.model_max_length).save(arguments.folder / "samples.png", optimize=True)
    if arguments.recognisable is not None:
        measured = measure(pipeline, read_emoji(arguments.google, "google"), arguments.recognisable)
        print(measured)
        write_card(arguments.folder / "README.md", measured)


if __name__ == "__main__":
    main()
