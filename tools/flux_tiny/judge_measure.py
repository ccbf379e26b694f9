"""Measure the judge: names among 64, styles, clean against corrupted, each on pictures that it was not trained on.

Legend: N pictures, C color channels, H/W px, E embedding, M names.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from tools.flux_tiny.drawings import TEST_SETS, Subject
from tools.flux_tiny.judge_model import HEAD_FILE
from tools.flux_tiny.judge_scenes import MISTAKEN, SIDE_PX, STYLED, JudgeScene, draw_scenes
from tools.flux_tiny.judge_views import CORRUPTIONS
from tools.flux_tiny.scenes import Album
from tools.flux_tiny.styles import HELD_OUT_STYLES

SEED = 30_011
NAMES = 64
BASE_HELD_OUT = "base's held-out subjects, trained sets and styles"
EACH = 160  # pictures of a held-out style or set
ASIDE = {"People & Body", "Symbols", "Flags"}


@dataclass(frozen=True, kw_only=True)
class Named:
    """Pictures (N, 3, H, W) in 0..1 and the subject of each."""

    pictures: Tensor
    subjects: list[Subject]

    def select(self, *, aside: bool) -> Named:
        """People, symbols and flags, or all others."""
        rows = [row for row, subject in enumerate(self.subjects) if (subject.category in ASIDE) == aside]
        return Named(pictures=self.pictures[rows], subjects=[self.subjects[row] for row in rows])


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Shares of 1. `names` and `names_aside` by kind of picture: the right name is first of 64.

    `style` says how often the caption with the right style beats one with a wrong style, `corrupted` by corruption how
    often the head scores the corrupted picture below the clean one, `alarms` how often it scores a picture of a
    held-out style or set below 0.
    """

    names: dict[str, float]
    names_aside: dict[str, float]
    style: float
    corrupted: dict[str, float]
    alarms: float

    @property
    def held_out_subjects(self) -> float:
        return self.names[BASE_HELD_OUT]

    @property
    def held_out_styles(self) -> float:
        """Over the held-out styles and sets together, each as often."""
        return mean_of_unseen(self.names)

    @property
    def held_out_styles_aside(self) -> float:
        return mean_of_unseen(self.names_aside)


def mean_of_unseen(shares: dict[str, float]) -> float:
    unseen = [share for kind, share in shares.items() if kind != BASE_HELD_OUT]
    return sum(unseen) / len(unseen)


class Reader:
    """A judge read from its folder, as any program would."""

    def __init__(self, folder: Path) -> None:
        self.clip = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(folder)
        self.head = load_file(folder / HEAD_FILE)

    @torch.inference_mode()
    def images(self, pictures_NCHW: Tensor) -> Tensor:
        """Embeddings (N, E) of length 1."""
        parts = [self.clip.get_image_features(part * 2 - 1).pooler_output for part in pictures_NCHW.split(64)]
        return F.normalize(torch.cat(parts), dim=-1)

    @torch.inference_mode()
    def texts(self, captions: list[str]) -> Tensor:
        """Embeddings (M, E) of length 1."""
        encoded = self.tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
        return F.normalize(self.clip.get_text_features(**encoded).pooler_output, dim=-1)

    def clean(self, image_NE: Tensor) -> Tensor:
        """(N,) above 0 for clean pictures."""
        return F.linear(image_NE, self.head["weight"], self.head["bias"]).squeeze(-1)


def measure(folder: Path, sets: Path, subjects: list[Subject]) -> Figures:
    """All figures of the card. The same seed gives the same pictures and names."""
    random.seed(SEED)
    torch.manual_seed(SEED)
    reader = Reader(folder)
    names_ME = reader.texts([subject.name for subject in subjects])
    shown = {BASE_HELD_OUT: held_out_subjects(sets, subjects), **held_out_styles(sets, subjects)}
    trained = Album(sets, subjects, held_out=None)
    strange = torch.cat([kind.pictures for name, kind in shown.items() if name != BASE_HELD_OUT])
    return Figures(
        names={kind: top1(reader, named.select(aside=False), subjects, names_ME) for kind, named in shown.items()},
        names_aside={kind: top1(reader, named.select(aside=True), subjects, names_ME) for kind, named in shown.items()},
        style=style_share(reader, trained),
        corrupted=corrupted_shares(reader, trained),
        alarms=(reader.clean(reader.images(strange)) < 0).float().mean().item(),
    )


def held_out_subjects(sets: Path, subjects: list[Subject]) -> Named:
    """The base's held-out subjects in trained sets and styles, drawn anew."""
    album = Album(sets, subjects, held_out=True)
    scenes = [scene for _ in range(80) for scene in draw_scenes(album)]
    return Named(
        pictures=torch.stack([scene.picture for scene in scenes]),
        subjects=[subjects[scene.subject] for scene in scenes],
    )


def held_out_styles(sets: Path, subjects: list[Subject]) -> dict[str, Named]:
    """Each held-out style over Noto drawings and each test set, drawn at 128 px and shrunk."""
    album = Album(sets, subjects, held_out=None, sets=("noto", *TEST_SETS))
    shown: dict[str, Named] = {}
    for name in (*HELD_OUT_STYLES, *TEST_SETS):
        source = name if name in TEST_SETS else "noto"
        drawings, drawn = album.get(source, spread(album, source), 128)
        pictures = HELD_OUT_STYLES[name][0](drawings) if name in HELD_OUT_STYLES else drawings.on_white
        shown[name] = Named(
            pictures=F.interpolate(pictures, (SIDE_PX, SIDE_PX), mode="area").clamp(0, 1), subjects=drawn
        )
    return shown


def spread(album: Album, name: str) -> list[int]:
    """Rows of a set: EACH objects, and half as many people, symbols and flags, both evenly spread."""
    aside = [album.subjects[int(i)].category in ASIDE for i in album.index[name]]
    objects, rest = ([row for row, flag in enumerate(aside) if flag == side] for side in (False, True))
    return objects[:: max(1, len(objects) // EACH)][:EACH] + rest[:: max(1, 2 * len(rest) // EACH)][: EACH // 2]


def top1(reader: Reader, named: Named, subjects: list[Subject], names_ME: Tensor) -> float:
    """How often a picture's own name is nearer than 63 others, drawn with a fixed seed."""
    place = {subject.code: row for row, subject in enumerate(subjects)}
    choice = random.Random(SEED)
    right = 0
    for image_E, subject in zip(reader.images(named.pictures), named.subjects, strict=True):
        own = place[subject.code]
        others = choice.sample([row for row, other in enumerate(subjects) if other.name != subject.name], NAMES - 1)
        right += int((names_ME[[own, *others]] @ image_E).argmax() == 0)
    return right / len(named.subjects)


def style_share(reader: Reader, album: Album) -> float:
    """How often a caption with the picture's own style is nearer than the same name with another style."""
    scenes = [scene for scene in draw_many(album, 60) if scene.style]
    image_NE = reader.images(torch.stack([scene.picture for scene in scenes]))
    own_NE, wrong_NE = (reader.texts([s.wordings[kind] for s in scenes]) for kind in (STYLED, MISTAKEN))
    return ((image_NE * own_NE).sum(1) > (image_NE * wrong_NE).sum(1)).float().mean().item()


def corrupted_shares(reader: Reader, album: Album) -> dict[str, float]:
    pictures = torch.stack([scene.picture for scene in draw_many(album, 24)])
    clean_N = reader.clean(reader.images(pictures))
    shares = {"none (clean, above 0)": (clean_N > 0).float().mean().item()}
    for name, spoil in CORRUPTIONS.items():
        spoilt_N = reader.clean(reader.images(torch.cat([spoil(part) for part in pictures.split(8)])))
        shares[name] = (spoilt_N < clean_N).float().mean().item()
    return shares


def draw_many(album: Album, groups: int) -> Iterator[JudgeScene]:
    for _ in range(groups):
        yield from draw_scenes(album)
