"""What the judge learns from: many scenes drawn once, with captions that say the subject, and its style or not.

Legend: N pictures, K wordings of a caption, S tokens, H/W height and width in px.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTokenizer

from tools.flux_tiny.drawings import TRAINED_SETS, Subject
from tools.flux_tiny.flow import to_model_space
from tools.flux_tiny.scenes import SET_WORDS, Album, caption, say
from tools.flux_tiny.styles import TRAINED_STYLES, grounds, place, plain

SIDE_PX = 64
TOKENS = 24  # of a trained caption; a longer one is cut
ALIKE = 8  # scenes of one set and style that are drawn at once
PLAIN_SHARE = 0.3
PLACED_SHARE = 0.12
SET_SAID_SHARE = 0.6
STYLES = (plain.__name__, *TRAINED_STYLES)

# Columns of the wordings.
BARE, SAID, STYLED, STYLED_AGAIN, MISTAKEN = range(5)


@dataclass(frozen=True, kw_only=True)
class JudgeScene:
    """A picture (3, H, W) in 0..1 and K wordings: bare name, subject alone, twice with style, with a wrong style.

    `turns` says whether the mirrored picture is the same to a reader of the captions.
    """

    picture: Tensor
    wordings: tuple[str, ...]
    subject: int
    style: int
    turns: bool


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Scenes as tensors: `pictures` (N, 3, H, W) uint8, `tokens` (N, K, S), `subject`, `style` and `turns` (N,).

    `mush` (N, 3, H, W) uint8 are pictures that the VAE draws from latents of nothing.
    """

    pictures: Tensor
    tokens: Tensor
    subject: Tensor
    style: Tensor
    turns: Tensor
    mush: Tensor

    def save(self, path: Path) -> None:
        unfinished = path.with_suffix(".part")
        torch.save(vars(self), unfinished)
        unfinished.replace(path)

    @classmethod
    def load(cls, path: Path) -> Pool:
        return cls(**torch.load(path, weights_only=True))


def draw_scenes(album: Album) -> list[JudgeScene]:
    """Draw ALIKE scenes of a set in a style, sets and styles evenly often: a judge must know all of them."""
    name = random.choice(TRAINED_SETS)
    style = plain if random.random() < PLAIN_SHARE else random.choice(list(TRAINED_STYLES.values()))
    rows = album.rows(name, ALIKE)
    drawings, subjects = album.get(name, rows)
    drawings, where = place(drawings, SIDE_PX, SIDE_PX, said=PLACED_SHARE)
    ground, on = grounds(ALIKE, SIDE_PX, SIDE_PX, white=0.4)
    pictures, phrases, shows = style(drawings, ground)
    scenes: list[JudgeScene] = []
    for picture, subject, row, phrase, ground_words, side in zip(
        pictures.clamp(0, 1), subjects, rows, phrases, on, where, strict=True
    ):
        words = random.choice(SET_WORDS[name]) if random.random() < SET_SAID_SHARE else ""
        told = (words, phrase, ground_words if shows else "", side)
        scenes.append(
            JudgeScene(
                picture=picture,
                wordings=wordings(subject, told, mistake(name, phrase)),
                subject=int(album.index[name][row]),
                style=STYLES.index(style.__name__),
                turns=not any(word in f"{subject.name} {side}" for word in ("left", "right")),
            )
        )
    return scenes


def wordings(subject: Subject, told: tuple[str, ...], wrong: tuple[str, ...]) -> tuple[str, ...]:
    return (
        subject.name,
        say(subject),
        caption(subject.name, *told),
        caption(say(subject), *told),
        ", ".join([subject.name, *wrong]),
    )


def mistake(name: str, phrase: str) -> tuple[str, ...]:
    """Words of a style that the picture does not have: another style, or for a plain one now and then another set."""
    if not phrase and random.random() < 0.5:
        return (random.choice(SET_WORDS[random.choice([other for other in TRAINED_SETS if other != name])]),)
    others = [words for words in STYLE_WORDS if words.split()[-1] not in phrase]
    return (random.choice(others),)


STYLE_WORDS = (
    "pencil sketch", "graphite", "hatched drawing", "engraving", "pixel art", "poster print", "sepia photo",
    "watercolor", "embossed", "negative", "black and white", "halftone", "sticker", "stained glass", "at night",
    "strange colors", "paper cut", "out of focus", "black silhouette", "blue silhouette", "red and yellow duotone",
    "navy and pink duotone", "blueprint", "chalk on black", "chalk on dark green", "green light", "purple light",
)  # fmt: skip


def draw_pool(album: Album, tokenizer: CLIPTokenizer, vae: AutoencoderKL, *, count: int, seed: int) -> Pool:
    """Draw `count` scenes and a twentieth as much mush."""
    random.seed(seed)
    torch.manual_seed(seed)
    scenes = [scene for _ in range(count // ALIKE) for scene in draw_scenes(album)]
    tokens = token_ids(tokenizer, [words for scene in scenes for words in scene.wordings])
    return Pool(
        pictures=to_bytes(torch.stack([scene.picture for scene in scenes])),
        tokens=tokens.view(len(scenes), -1, TOKENS).short(),
        subject=torch.tensor([scene.subject for scene in scenes]),
        style=torch.tensor([scene.style for scene in scenes]),
        turns=torch.tensor([scene.turns for scene in scenes]),
        mush=draw_mush(vae, scenes, count // 40),
    )


@torch.inference_mode()
def draw_mush(vae: AutoencoderKL, scenes: list[JudgeScene], count: int) -> Tensor:
    """Pictures (2 * count, 3, H, W) uint8 of an untrained or ruined model: latents of noise, and mostly of noise."""
    drawn: list[Tensor] = []
    for start in range(0, count, 64):
        picture_BCHW = torch.stack([scene.picture for scene in scenes[start : start + 64]])
        mean_BCHW = to_model_space(vae.encode(picture_BCHW * 2 - 1).latent_dist.mean, vae)
        scale_B111, share_B111 = torch.rand(2, len(mean_BCHW), 1, 1, 1) * torch.tensor([1.2, 0.4]).view(2, 1, 1, 1, 1)
        noise_BCHW = torch.randn_like(mean_BCHW)
        for latents_BCHW in (noise_BCHW * (0.3 + scale_B111), torch.lerp(mean_BCHW, noise_BCHW, 0.5 + share_B111)):
            unscaled_BCHW = latents_BCHW / vae.config.scaling_factor + vae.config.shift_factor
            drawn.append(vae.decode(unscaled_BCHW).sample.mul(0.5).add(0.5).clamp(0, 1))
    return to_bytes(torch.cat(drawn))


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """(N, S) int64. The text tower is causal and reads the first end mark, so padding changes nothing."""
    encoded = tokenizer(captions, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
    ids_NS: Tensor = encoded.input_ids
    return ids_NS


def to_bytes(pictures_NCHW: Tensor) -> Tensor:
    return (pictures_NCHW * 255).round().byte()
