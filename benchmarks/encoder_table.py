"""The report of `encoder.py` as text. It takes what the JSON file holds.

python -m benchmarks.encoder_table benchmarks/results/FILE.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

COLUMNS = "{:<5}{:<15}{:>10}{:>13}{:>8}{:>10}{:>7}{:>13}{:>8}   {}"
WAYS = {"plain": "plain loop", "plain_stored": "plain, stored", "first": "first encode", "second": "second encode"}


def table(report: Mapping[str, Any]) -> str:
    """The figures in lines."""
    heads = ("px", "", "samples/s", "min-max s", "CPU ms", "to plain", "best", "resident GB", "GPU GB")
    captions, (width_px, height_px) = report["captions"], report["image_px"]
    return "\n".join(
        [
            f"{report['model']} on {report['device']}, {report['cores']} cores, {report['date']}; T5 in "
            f"{report['t5_precision']}, {report['t5_tokens']} tokens",
            f"{report['images']} files of {width_px} x {height_px} px, {report['image_mb']:.2f} MB each",
            COLUMNS.format(*heads, "prepare / compute / store, ms a sample"),
            *(_line(figures, way) for figures in report["resolutions"] for way in WAYS),
            "captions/s: "
            f"encode_prompt {captions['plain_per_s']:.0f}, first {captions['first_per_s']:.0f}, "
            f"second {captions['second_per_s']:.0f}",
            f"{report['seconds_total']:.0f} s in all",
        ]
    )


def _line(figures: Mapping[str, Any], way: str) -> str:
    run = figures[way]
    ratio, best = (
        f"{figures[name]:.2f}" if name in figures else "" for name in (f"{way}_to_plain", f"{way}_to_plain_best")
    )
    peak, stages = run["peak_memory"], run["thread_seconds"].values()
    return COLUMNS.format(
        figures["resolution_px"],
        WAYS[way],
        f"{run['samples_per_s']:.1f}",
        f"{run['seconds']['min_s']:.2f}-{run['seconds']['max_s']:.2f}",
        f"{1e3 * run['cpu_s_a_sample']:.0f}",
        ratio,
        best,
        f"{run['peak_resident_gb']:.2f}",
        f"{peak['reserved_gb']:.2f}" if peak else "-",
        " / ".join(f"{1e3 * seconds:.0f}" for seconds in stages) if any(stages) else "",
    ).rstrip()


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text())))
