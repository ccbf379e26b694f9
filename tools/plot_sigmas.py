"""Plot how often each sampling draws each noise level, from the function that training draws with.

python -m tools.plot_sigmas --out docs/images/sigma_densities.png
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from services.trainer.config import TrainConfig
from services.trainer.config.choices import SigmaSampling
from services.trainer.sigmas import sigma_at

LEVELS = 8000  # of which a hundred and more fall into each bin where there are any to speak of
BINS = 60
HIGHEST_DENSITY = 4.2
COLORS = ("#2b6cb0", "#dd6b20")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One distribution: what it is called, what it differs by from the default, and the packed tokens of the image."""

    label: str = ""
    fields: dict[str, float] = field(default_factory=dict)
    tokens: int = 1024


PANELS: dict[SigmaSampling, tuple[Curve, ...]] = {
    SigmaSampling.UNIFORM: (Curve(),),
    SigmaSampling.LOGIT_NORMAL: (
        Curve(label="mean 0, std 1"),
        Curve(label="mean -1, std 0.8", fields={"sigma_mean": -1, "sigma_std": 0.8}),
    ),
    SigmaSampling.RESOLUTION_SHIFT: (Curve(label="512² px"), Curve(label="1024² px", tokens=4096)),
    SigmaSampling.STATIC_SHIFT: (
        Curve(label="shift 3"),
        Curve(label="shift 0.5", fields={"sigma_shift": 0.5}),
    ),
    SigmaSampling.MODE: (
        Curve(label="scale 1.29"),
        Curve(label="scale -0.7", fields={"sigma_mode_scale": -0.7}),
    ),
    SigmaSampling.COSMAP: (Curve(),),
    SigmaSampling.CUBIC_CONTENT: (Curve(),),
    SigmaSampling.CUBIC_STYLE: (Curve(),),
    SigmaSampling.BETA: (
        Curve(label="a 2, b 2"),
        Curve(label="a 4, b 1.5", fields={"sigma_beta_a": 4, "sigma_beta_b": 1.5}),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    figure().savefig(parser.parse_args().out, dpi=110)


def figure() -> Figure:
    """One small panel a sampling, all on the same axes."""
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        drawn = Figure(figsize=(9, 6.6), layout="constrained")
        axes = drawn.subplots(3, 3, sharex=True, sharey=True)
        for place, (sampling, curves) in enumerate(PANELS.items()):
            panel(axes.flat[place], sampling, curves)
        drawn.supxlabel("noise level sigma: 0 is the image, 1 is noise", fontsize=10)
        drawn.supylabel("density", fontsize=10)
    return drawn


def panel(axes: Axes, sampling: SigmaSampling, curves: tuple[Curve, ...]) -> None:
    edges = np.linspace(0, 1, BINS + 1)
    for curve, color in zip(curves, COLORS, strict=False):
        density = density_of(sampling, curve, edges)
        axes.stairs(density, edges, color=color, linewidth=1.4, label=curve.label or None)
        axes.stairs(density, edges, color=color, alpha=0.15, fill=True)
    axes.set_title(sampling.value, fontsize=9.5, loc="left")
    axes.set(xlim=(0, 1), ylim=(0, HIGHEST_DENSITY))
    axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    if len(curves) > 1:
        axes.legend(frameon=False, loc="upper right", fontsize=8, handlelength=1.2)


def density_of(sampling: SigmaSampling, curve: Curve, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Density in each bin of levels at evenly spaced places of the distribution."""
    config = TrainConfig.model_validate({"sigma_sampling": sampling, "timesteps": 100_000, **curve.fields})
    levels = [sigma_at(config, (place + 0.5) / LEVELS, curve.tokens) for place in range(LEVELS)]
    density: NDArray[np.float64] = np.histogram(levels, edges, density=True)[0]
    return density


if __name__ == "__main__":
    main()
