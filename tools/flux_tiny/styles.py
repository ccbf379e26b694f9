"""Styles, grounds and placements, computed on batches, and the words that say them.

Each style takes drawings with alpha over a ground and gives pictures with a phrase each. Pictures are 0..1. All lengths
follow the height, so a style looks alike at 64 and at 128 px.

Legend: B batch, C colour channels, H/W height and width in px.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

COLORS = {
    "red": (0.85, 0.12, 0.12),
    "orange": (0.97, 0.55, 0.1),
    "yellow": (0.98, 0.85, 0.2),
    "green": (0.2, 0.65, 0.25),
    "dark green": (0.05, 0.3, 0.15),
    "teal": (0.1, 0.6, 0.6),
    "blue": (0.15, 0.4, 0.85),
    "navy": (0.05, 0.08, 0.3),
    "purple": (0.45, 0.2, 0.65),
    "dark purple": (0.15, 0.03, 0.25),
    "pink": (0.98, 0.6, 0.75),
    "brown": (0.45, 0.28, 0.15),
    "black": (0.03, 0.03, 0.04),
    "gray": (0.5, 0.5, 0.52),
    "dark gray": (0.18, 0.18, 0.2),
    "light gray": (0.82, 0.82, 0.84),
    "white": (1.0, 1.0, 1.0),
    "cream": (0.97, 0.93, 0.8),
    "beige": (0.88, 0.8, 0.65),
    "sky blue": (0.6, 0.82, 0.97),
}


@dataclass(frozen=True, kw_only=True)
class Drawings:
    """A batch of drawings: color (B, 3, H, W) and alpha (B, 1, H, W), 0..1."""

    rgb: Tensor
    alpha: Tensor

    @property
    def unit(self) -> float:
        """Length that is one px in a picture 64 px high."""
        return self.rgb.shape[-2] / 64

    def on(self, ground: Tensor) -> Tensor:
        return torch.lerp(ground, self.rgb, self.alpha)

    @property
    def on_white(self) -> Tensor:
        return self.on(torch.ones_like(self.rgb))


def any_color(count: int) -> tuple[list[str], Tensor]:
    """Names and values (B, 3, 1, 1) of colors drawn at random."""
    return colors(random.choices(list(COLORS), k=count))


def colors(names: list[str]) -> tuple[list[str], Tensor]:
    return names, torch.tensor([COLORS[name] for name in names]).view(-1, 3, 1, 1)


def grid(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Coordinates (H, W) that run from -1 to 1 over the height; as far for each px over the width."""
    y = torch.linspace(-1, 1, height)
    x = torch.linspace(-1, 1, width) * width / height
    y_HW, x_HW = torch.meshgrid(y, x, indexing="ij")
    return y_HW, x_HW


def blur(x_BCHW: Tensor, sigma: float) -> Tensor:
    size = max(3, int(sigma * 4) | 1)
    offsets = torch.arange(size) - size // 2
    kernel = torch.exp(-offsets.float().square() / (2 * sigma * sigma))
    kernel = kernel / kernel.sum()
    channels = x_BCHW.shape[1]
    padded = F.pad(x_BCHW, (size // 2,) * 4, mode="replicate")
    across = F.conv2d(padded, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(across, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)


def gray(x_BCHW: Tensor) -> Tensor:
    return (x_BCHW * x_BCHW.new_tensor([0.3, 0.59, 0.11]).view(1, 3, 1, 1)).sum(1, keepdim=True)


def edges(d: Drawings, gain: float = 1.6) -> Tensor:
    """Lines where color or alpha change: (B, 1, H, W) in 0..1."""
    x_B4HW = torch.cat([d.rgb * d.alpha, d.alpha], 1)
    step = max(1, round(d.unit))
    padded = F.pad(x_B4HW, (step,) * 4, mode="replicate")
    across = padded[..., step:-step, 2 * step :] - padded[..., step:-step, : -2 * step]
    down = padded[..., 2 * step :, step:-step] - padded[..., : -2 * step, step:-step]
    return ((across.square() + down.square()).sum(1, keepdim=True).sqrt() * gain).clamp(0, 1)


def grounds(count: int, height: int, width: int, white: float) -> tuple[Tensor, list[str]]:
    """Backgrounds (B, 3, H, W) and their phrases; a share `white` of them is plain white."""
    made = [ground(height, width, white) for _ in range(count)]
    return torch.stack([picture for picture, _ in made]), [phrase for _, phrase in made]


def ground(height: int, width: int, white: float) -> tuple[Tensor, str]:  # noqa: PLR0911 - a return for each kind
    if random.random() < white:
        return torch.ones(3, height, width), random.choice(["", "", "", "on white"])
    y, x = grid(height, width)
    (one, two), values = any_color(2)
    first, second = values
    angle, kind = random.random() * math.tau, random.random()
    along = x * math.cos(angle) + y * math.sin(angle)
    if kind < 0.55:
        phrase = random.choice([f"on {one}", f"{one} background", f"on a {one} background"])
        return first.expand(3, height, width), phrase
    if kind < 0.72:
        return torch.lerp(first, second, (along * 0.5 + 0.5).clamp(0, 1)), f"{one} and {two} gradient"
    if kind < 0.80:
        far = ((x.square() + y.square()).sqrt() * 0.75).clamp(0, 1)
        return torch.lerp(first, second, far), f"{one} glow on {two}"
    if kind < 0.88:
        stripes = (along * random.choice([2.5, 4]) % 1 > 0.5).float()
        return torch.lerp(first, second, stripes), f"on {one} and {two} stripes"
    if kind < 0.94:
        count = random.choice([2, 3, 4])
        squares = (((x + 1) * count).floor() + ((y + 1) * count).floor()) % 2
        return torch.lerp(first, second, squares), f"on {one} and {two} squares"
    dots = (((x * 2.5) % 1 - 0.5).square() + ((y * 2.5) % 1 - 0.5).square() < 0.08).float()
    return torch.lerp(first, second, dots), f"on {one} with {two} dots"


def place(d: Drawings, height: int, width: int, *, said: float) -> tuple[Drawings, list[str]]:
    """Put each drawing into a frame (H, W), nudged; a share `said` is small, huge, to a side or turned, and says so."""
    matrices, phrases = zip(*[placement(said) for _ in range(len(d.rgb))], strict=True)
    theta_B23 = torch.tensor(matrices)
    theta_B23[:, 0] *= torch.tensor([width / height, 1, 1])
    premultiplied = torch.cat([d.rgb * d.alpha, d.alpha], 1)
    where = F.affine_grid(theta_B23, [len(phrases), 4, height, width], align_corners=False)
    x_B4HW = F.grid_sample(premultiplied, where, align_corners=False)
    alpha = x_B4HW[:, 3:].clamp(0, 1)
    return Drawings(rgb=(x_B4HW[:, :3] / alpha.clamp(min=1e-3)).clamp(0, 1), alpha=alpha), list(phrases)


def placement(said: float) -> tuple[list[list[float]], str]:
    scale, across, down = random.uniform(0.96, 1.1), random.uniform(-0.05, 0.05), random.uniform(-0.05, 0.05)
    turn, phrase = 0.0, ""
    if random.random() < said:
        phrase = random.choice(["small", "small", "close up", "on the left", "on the right", "tilted", "upside down"])
        if phrase == "small":
            scale = random.uniform(1.5, 2.0)
        elif phrase == "close up":
            scale = random.uniform(0.6, 0.75)
        elif phrase in ("on the left", "on the right"):
            scale = random.uniform(1.5, 1.8)
            across = scale * (0.45 if phrase == "on the left" else -0.45)
        elif phrase == "tilted":
            turn, scale = random.choice([-1, 1]) * random.uniform(0.4, 0.8), 1.25
        else:
            turn = math.pi
    cos, sin = scale * math.cos(turn), scale * math.sin(turn)
    return [[cos, -sin, across], [sin, cos, down]], phrase


def pair(left: Drawings, right: Drawings) -> Drawings:
    """Two drawings side by side, each half as wide as the frame."""
    height, width = left.rgb.shape[-2:]
    frame = torch.zeros(len(left.rgb), 4, height, width)
    for start, d in ((0, left), (width // 2, right)):
        x_B4HW = torch.cat([d.rgb * d.alpha, d.alpha], 1)
        small = F.interpolate(x_B4HW, size=(height // 2, width // 2), mode="area")
        for row, picture in enumerate(small):
            top = random.randint(height // 8, 3 * height // 8)
            frame[row, :, top : top + height // 2, start : start + width // 2] = picture
    alpha = frame[:, 3:]
    return Drawings(rgb=(frame[:, :3] / alpha.clamp(min=1e-3)).clamp(0, 1), alpha=alpha)


# A style: pictures (B, 3, H, W), a phrase for each, and whether the ground shows.
Styled = tuple[Tensor, list[str], bool]
Style = Callable[[Drawings, Tensor], Styled]


def phrased(picture: Tensor, phrases: list[str], shows: bool) -> Styled:
    count, _, height, width = picture.shape
    return picture.expand(count, 3, height, width).clamp(0, 1), random.choices(phrases, k=count), shows


def plain(d: Drawings, ground: Tensor) -> Styled:
    return d.on(ground), [""] * len(d.rgb), True


def pencil(d: Drawings, _: Tensor) -> Styled:
    x = gray(d.on_white)
    dodge = x / (1 - blur(1 - x, 2 * d.unit)).clamp(min=0.05)
    line = torch.lerp(x * 0.5 + 0.5, dodge.clamp(0, 1), 0.55) - 0.45 * edges(d, 0.9)
    return phrased(line, ["pencil sketch", "pencil drawing", "graphite"], False)


def hatched(d: Drawings, _: Tensor) -> Styled:
    y, x = grid(*d.rgb.shape[-2:])
    shade = gray(d.on_white)
    one, two = ((x + y) * 7 % 1 > 0.5).float(), ((x - y) * 7 % 1 > 0.5).float()
    lines = 1 - 0.75 * one * (shade < 0.72) - 0.75 * two * (shade < 0.42)
    return phrased(blur(lines.clamp(0, 1), 0.6 * d.unit), ["hatched drawing", "engraving"], False)


def pixels(d: Drawings, ground: Tensor) -> Styled:
    picture, size = d.on(ground), random.choice([4, 4, 8]) * d.unit
    height, width = picture.shape[-2:]
    cells = (round(height / size), round(width / size))
    coarse = F.interpolate(F.adaptive_avg_pool2d(picture, cells), size=picture.shape[-2:], mode="nearest")
    return phrased(coarse, ["pixel art", "8 bit"], True)


def poster(d: Drawings, ground: Tensor) -> Styled:
    return phrased((d.on(ground) * 3).round() / 3, ["poster print", "screen print"], True)


def sepia(d: Drawings, ground: Tensor) -> Styled:
    tint = torch.tensor([1.05, 0.88, 0.65]).view(1, 3, 1, 1)
    return phrased(gray(d.on(ground)) * tint + 0.03, ["sepia photo", "old photo"], False)


def watercolor(d: Drawings, _: Tensor) -> Styled:
    u = d.unit
    soft = blur(d.rgb * d.alpha, 1.8 * u) / blur(d.alpha, 1.8 * u).clamp(min=0.05)
    x = torch.lerp(torch.ones_like(d.rgb), soft, blur(d.alpha, 1.5 * u))
    spots = blur(torch.randn_like(d.alpha), 3 * u)
    spots = spots / spots.std()
    x = x * 0.7 + 0.3 + 0.05 * spots * blur(d.alpha, 2 * u) - 0.12 * edges(d, 0.7)
    return phrased(x, ["watercolor", "watercolor painting"], False)


def embossed(d: Drawings, ground: Tensor) -> Styled:
    shade, step = blur(gray(d.on(ground)), 0.7 * d.unit), round(2 * d.unit)
    return phrased(
        0.55 + 1.3 * (shade - torch.roll(shade, (step, step), (-2, -1))), ["embossed", "stone relief"], False
    )


def negative(d: Drawings, _: Tensor) -> Styled:
    return phrased(1 - d.on_white, ["negative", "inverted colors"], False)


def black_and_white(d: Drawings, ground: Tensor) -> Styled:
    return phrased(gray(d.on(ground)), ["black and white", "grayscale"], False)


def halftone(d: Drawings, _: Tensor) -> Styled:
    y, x = grid(*d.rgb.shape[-2:])
    shade = blur(gray(d.on_white), d.unit)
    dots = (torch.sin(x * 34) * torch.sin(y * 34) + 1) / 2
    light = ((dots - (1 - shade) * 1.05 + 0.25) * 3).clamp(0, 1)
    names, values = colors(random.choices(["black", "black", "navy", "red", "dark green", "purple"], k=len(d.rgb)))
    phrases = ["halftone" if name == "black" else f"halftone in {name}" for name in names]
    return torch.lerp(values, torch.ones_like(d.rgb), light), phrases, False


def sticker(d: Drawings, ground: Tensor) -> Styled:
    u = d.unit
    rim = F.max_pool2d(d.alpha, 4 * round(u) + 1, 1, 2 * round(u))
    shadow = torch.roll(blur(rim, 1.5 * u), (round(2 * u), round(2 * u)), (-2, -1)) * 0.45
    return phrased(d.on(torch.lerp(ground * (1 - shadow), torch.ones_like(ground), rim)), ["sticker"], True)


def stained_glass(d: Drawings, ground: Tensor) -> Styled:
    lead = F.max_pool2d(edges(d, 1.4), 3, 1, 1)
    shade = gray(d.rgb)
    vivid = (shade + (d.rgb - shade) * 1.7).clamp(0, 1)
    x = torch.lerp(ground, vivid, d.alpha)
    return phrased(torch.lerp(x, torch.full_like(x, 0.05), lead), ["stained glass"], True)


def night(d: Drawings, ground: Tensor) -> Styled:
    return phrased(d.on(ground) * torch.tensor([0.28, 0.33, 0.6]).view(1, 3, 1, 1), ["at night", "night scene"], False)


def strange(d: Drawings, ground: Tensor) -> Styled:
    order = random.choice([[1, 2, 0], [2, 0, 1], [2, 1, 0], [1, 0, 2]])
    return phrased(d.on(ground)[:, order], ["strange colors", "psychedelic"], True)


def paper_cut(d: Drawings, ground: Tensor) -> Styled:
    step = round(2 * d.unit)
    shadow = torch.roll(blur(d.alpha, 1.2 * d.unit), (step, step), (-2, -1))
    below, above = ground * (1 - 0.35 * shadow), ground * 0.82 + 0.18 - 0.25 * edges(d, 0.5)
    return phrased(torch.lerp(below, above.clamp(0, 1), d.alpha), ["paper cut"], True)


def blurred(d: Drawings, ground: Tensor) -> Styled:
    return phrased(blur(d.on(ground), 2.2 * d.unit), ["out of focus", "blurred"], True)


def silhouette(d: Drawings, ground: Tensor) -> Styled:
    names, values = any_color(len(d.rgb))
    return torch.lerp(ground, values.expand_as(ground), d.alpha), [f"{name} silhouette" for name in names], True


def duotone(d: Drawings, ground: Tensor) -> Styled:
    (dark, dark_values), (light, light_values) = any_color(len(d.rgb)), any_color(len(d.rgb))
    x = torch.lerp(dark_values, light_values, gray(d.on_white))
    return x, [f"{one} and {two} duotone" for one, two in zip(dark, light, strict=True)], False


def three_color_print(d: Drawings, ground: Tensor) -> Styled:
    (a, low), (b, middle), (c, high) = any_color(len(d.rgb)), any_color(len(d.rgb)), any_color(len(d.rgb))
    shade = gray(d.on_white)
    x = torch.where(shade < 0.5, torch.lerp(low, middle, shade * 2), torch.lerp(middle, high, shade * 2 - 1))
    return x, [f"{one}, {two} and {three} print" for one, two, three in zip(a, b, c, strict=True)], False


def blueprint(d: Drawings, _: Tensor) -> Styled:
    names, values = colors(random.choices(["blue", "navy", "teal"], k=len(d.rgb)))
    x = torch.lerp(values.expand_as(d.rgb), torch.ones_like(d.rgb), 0.9 * edges(d, 1.1))
    return x, ["blueprint" if name == "blue" else f"{name} blueprint" for name in names], False


def chalk(d: Drawings, _: Tensor) -> Styled:
    names, values = colors(random.choices(["dark green", "dark gray", "black"], k=len(d.rgb)))
    dust = blur(torch.rand_like(d.alpha), 1.2 * d.unit) * 0.5 + 0.6
    x = torch.lerp(values.expand_as(d.rgb), torch.full_like(d.rgb, 0.95), (edges(d, 0.9) * dust).clamp(0, 1))
    return x, [f"chalk on {name}" for name in names], False


def colored_light(d: Drawings, ground: Tensor) -> Styled:
    names, values = any_color(len(d.rgb))
    return torch.lerp(d.on(ground), values.expand_as(ground), 0.55), [f"{name} light" for name in names], True


TRAINED_STYLES: dict[str, Style] = {
    style.__name__: style
    for style in (
        pencil, hatched, pixels, poster, sepia, watercolor, embossed, negative, black_and_white, halftone, sticker,
        stained_glass, night, strange, paper_cut, blurred, silhouette, duotone, three_color_print, blueprint, chalk,
        colored_light,
    )
}  # fmt: skip


# Held out: nothing of these is ever trained on. Phrases are for captions of LoRA datasets.
def ink(d: Drawings) -> Tensor:
    """Dark blue lines on cream."""
    size = 2 * round(d.unit)
    line = F.max_pool2d(F.pad(edges(d, 1.6), (0, size - 1, 0, size - 1)), size, 1)
    _, paper = colors(["cream"])
    return torch.lerp(paper.expand_as(d.rgb), torch.tensor([0.08, 0.12, 0.35]).view(1, 3, 1, 1), line)


def neon(d: Drawings) -> Tensor:
    """Lines in the drawing's own hue with a wide glow, on black."""
    u, low, high = d.unit, d.rgb.amin(1, keepdim=True), d.rgb.amax(1, keepdim=True)
    vivid = (d.rgb - low) / (high - low).clamp(min=0.15)
    hue = (blur(vivid * d.alpha, 1.5 * u) / blur(d.alpha, 1.5 * u).clamp(min=0.1)).clamp(0, 1) * 0.9 + 0.1
    line = hue * blur(edges(d, 1.7), 0.6 * u)
    return (line + 0.9 * blur(line, 3 * u) + 0.02).clamp(0, 1)


def crayon(d: Drawings) -> Tensor:
    """Pale wax with strokes and a colored outline, on rough paper."""
    y, x = grid(*d.rgb.shape[-2:])
    wobble = blur(torch.rand_like(d.alpha), 0.8 * d.unit)
    stroke = (((x * 0.5 + y) * 14 + 6 * wobble) % 1 > 0.3).float()
    wax = d.alpha * blur(stroke * 0.75 + 0.1, 0.6 * d.unit).clamp(0, 1)
    paper = torch.tensor([0.985, 0.965, 0.93]).view(1, 3, 1, 1).expand_as(d.rgb)
    drawn = torch.lerp(paper, d.rgb * 0.55 + 0.45, wax)
    return torch.lerp(drawn, d.rgb * d.alpha * 0.7, 0.55 * edges(d, 0.9)).clamp(0, 1)


def gold(d: Drawings) -> Tensor:
    """Raised gold on dark red."""
    step = round(2 * d.unit)
    shade = blur(gray(d.on_white), 0.5 * d.unit)
    height = blur(gray(d.rgb) * d.alpha + 0.4 * d.alpha, 0.8 * d.unit)
    shine = 1.2 * (height - torch.roll(height, (step, step), (-2, -1)))
    tone = (0.25 + 0.5 * shade + shine).clamp(0, 1)
    bronze, metal, light = (
        torch.tensor(c).view(1, 3, 1, 1) for c in ((0.3, 0.15, 0.02), (0.86, 0.62, 0.16), (1, 0.95, 0.7))
    )
    figure = torch.where(tone < 0.5, torch.lerp(bronze, metal, tone * 2), torch.lerp(metal, light, tone * 2 - 1))
    return torch.lerp(torch.tensor([0.36, 0.03, 0.07]).view(1, 3, 1, 1).expand_as(d.rgb), figure, d.alpha).clamp(0, 1)


HELD_OUT_STYLES: dict[str, tuple[Callable[[Drawings], Tensor], str]] = {
    "ink": (ink, "ink drawing"),
    "neon": (neon, "neon sign"),
    "crayon": (crayon, "pastel crayon"),
    "gold": (gold, "gold relief"),
}
