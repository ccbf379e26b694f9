"""Captioned pictures drawn at random: a subject from a set, in a style, on a ground.

    more than a third   the Noto drawing on white, captioned with its bare name
    the rest            any set, plain or in a computed style, on any ground, with all of it said in the caption

Legend: B batch, N drawings, H/W height and width in px.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tools.flux_tiny.drawings import TRAINED_SETS, Subject
from tools.flux_tiny.styles import TRAINED_STYLES, Drawings, grounds, pair, place, plain

WORDINGS = 3  # captions of a picture
BARE_SHARE = 0.36
PLAIN_SHARE = 0.4  # of what is not bare
PAIR_SHARE = 0.05
PLACED_SHARE = 0.12

SET_SHARE = {"noto": 0.34, "fluent-emoji-flat": 0.22, "fluent-emoji-3d": 0.16, "fluent-emoji": 0.16, "noto-v1": 0.12}
SET_WORDS = {
    "noto": ("emoji", "cartoon"),
    "noto-v1": ("old emoji", "round emoji"),
    "fluent-emoji-flat": ("flat icon", "flat vector"),
    "fluent-emoji-3d": ("3d render", "3d"),
    "fluent-emoji": ("glossy icon", "soft icon"),
}
SAID_SHARE = {"noto": 0.5, "noto-v1": 0.85, "fluent-emoji-flat": 0.9, "fluent-emoji-3d": 0.9, "fluent-emoji": 0.9}
CATEGORY_WEIGHT = {"People & Body": 0.15, "Flags": 0.1, "Symbols": 0.2, "Smileys & Emotion": 0.6}


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A picture (3, H, W) in 0..1, what it shows, and captions that say so in different words."""

    picture: Tensor
    captions: tuple[str, ...]
    subject: Subject
    style: str


class Album:
    """Drawings of some subjects in some sets, kept at 64 and 128 px; draws scenes from them."""

    def __init__(
        self, folder: Path, subjects: list[Subject], *, held_out: bool | None, sets: Iterable[str] = TRAINED_SETS
    ) -> None:
        """`held_out` takes that side of the split, None both."""
        self.subjects = subjects
        self.index: dict[str, Tensor] = {}
        self.rgba: dict[str, dict[int, Tensor]] = {}
        for name in sets:
            with np.load(folder / f"{name}.npz") as stored:
                kept = [held_out is None or subjects[i].held_out == held_out for i in stored["index"]]
                self.index[name] = torch.from_numpy(stored["index"][kept])
                rgba_N4HW = torch.from_numpy(stored["rgba"][kept]).permute(0, 3, 1, 2)
            self.rgba[name] = {128: rgba_N4HW.contiguous(), 64: half_size(rgba_N4HW)}

    def rows(self, name: str, count: int) -> list[int]:
        """Rows of a set, drawn by the weights of their categories."""
        weights = [CATEGORY_WEIGHT.get(self.subjects[int(i)].category, 1.0) for i in self.index[name]]
        return random.choices(range(len(weights)), weights, k=count)

    def get(self, name: str, rows: list[int], side: int = 64) -> tuple[Drawings, list[Subject]]:
        rgba = self.rgba[name][side][rows].float() / 255
        return Drawings(rgb=rgba[:, :3], alpha=rgba[:, 3:]), [self.subjects[int(self.index[name][row])] for row in rows]

    def scenes(self, count: int, height: int = 64, width: int = 64) -> list[Scene]:
        """`count` scenes of one set and style."""
        side = 64 if max(height, width) <= 64 else 128
        if random.random() < BARE_SHARE:
            return self._bare(count, side, height, width)
        name = random.choices(list(SET_SHARE), list(SET_SHARE.values()))[0]
        style = plain if random.random() < PLAIN_SHARE else random.choice(list(TRAINED_STYLES.values()))
        drawings, subjects = self.get(name, self.rows(name, count), side)
        where, beside = [""] * count, [""] * count
        if random.random() < PAIR_SHARE:
            others, second = self.get(name, self.rows(name, count), side)
            drawings, _ = place(pair(drawings, others), height, width, said=0)
            beside = [f" and {subject.name}" for subject in second]
        else:
            drawings, where = place(drawings, height, width, said=PLACED_SHARE)
        ground, on = grounds(count, height, width, white=0.4)
        pictures, phrases, shows = style(drawings, ground)
        on = on if shows else [""] * count
        share = SAID_SHARE[name] * (1 if style is plain else 0.6)
        scenes: list[Scene] = []
        for picture, subject, more, *parts in zip(
            pictures.clamp(0, 1), subjects, beside, phrases, on, where, strict=True
        ):
            captions = tuple(
                caption(subject.name + more if more else say(subject), set_words(name, share), *parts)
                for _ in range(WORDINGS)
            )
            scenes.append(Scene(picture=picture, captions=captions, subject=subject, style=style.__name__))
        return scenes

    def _bare(self, count: int, side: int, height: int, width: int) -> list[Scene]:
        drawings, subjects = self.get("noto", self.rows("noto", count), side)
        if (height, width) != (side, side):
            drawings, _ = place(drawings, height, width, said=0)
        return [
            Scene(picture=picture, captions=(s.name, s.name, random.choice(s.names)), subject=s, style="bare")
            for picture, s in zip(drawings.on_white, subjects, strict=True)
        ]


def set_words(name: str, share: float) -> str:
    return random.choice(SET_WORDS[name]) if random.random() < share else ""


def half_size(rgba_N4HW: Tensor) -> Tensor:
    """Shrink to a half, colors weighted by alpha: uint8."""
    shrunk: list[Tensor] = []
    for part in rgba_N4HW.split(256):
        rgb, alpha = part[:, :3].float() / 255, part[:, 3:].float() / 255
        small = F.avg_pool2d(torch.cat([rgb * alpha, alpha], 1), 2)
        color = small[:, :3] / small[:, 3:].clamp(min=1e-3)
        shrunk.append((torch.cat([color, small[:, 3:]], 1) * 255).round().clamp(0, 255).byte())
    return torch.cat(shrunk)


def say(subject: Subject) -> str:
    """Name a subject as people do: by its name, a nickname, with a keyword, seldom by keywords alone."""
    kind = random.random()
    name = subject.name if kind < 0.6 else random.choice(subject.names)
    if not subject.keywords or kind < 0.75:
        return name
    if kind < 0.93:
        return f"{name}, {random.choice(subject.keywords)}"
    return ", ".join(random.sample(subject.keywords, min(len(subject.keywords), 3)))


def caption(subject: str, *phrases: str) -> str:
    """The subject and what is said of it, seldom in another order; a phrase is left out now and then."""
    said = [phrase for phrase in phrases if phrase and random.random() < 0.92]
    random.shuffle(said)
    parts = [subject, *said]
    if random.random() < 0.2:
        random.shuffle(parts)
    return ", ".join(parts)
