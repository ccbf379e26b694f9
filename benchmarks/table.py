"""The report of `gpu.py` as text. It takes what the JSON file holds.

    python -m benchmarks.table benchmarks/results/FILE.json

prints a committed result again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLUMNS = "{:<34}{:>10}{:>16}{:>12}{:>12}{:>10}{:>8}{:>10}"
NONE = "-"


def table(report: Mapping[str, Any]) -> str:
    """The figures in lines of 112 characters."""
    heads = ("", "median s", "min-max s", "alloc. GB", "reserv. GB", "TFLOP/s", "floor", "loss")
    return "\n".join(
        [
            _device_line(report),
            ", ".join(f"{package} {number or 'missing'}" for package, number in report["versions"].items()),
            _transformer_line(report["transformer"]),
            COLUMNS.format(*heads),
            *(_case_line(case) for case in report["transformer"].get("cases", ())),
            *(_encode_line(name, report[name]) for name in ("t5", "clip", "vae")),
            *_service_lines(report["encoders"]),
            f"{report['seconds_total']:.0f} s in all",
        ]
    )


def _device_line(report: Mapping[str, Any]) -> str:
    device = report["device"]
    rate = device["matmul_tflop_s"]
    product = rate["failed"] if isinstance(rate, dict) else f"{rate:.3g} TFLOP/s"
    return (
        f"{device['name']}, {_number(device['memory_gb'], '.1f')} GB, CUDA {device['cuda'] or NONE}, {report['date']}, "
        f"scale {report['scale']}, bf16 product {product}"
    )


def _transformer_line(figures: Mapping[str, Any]) -> str:
    if "failed" in figures:
        return f"transformer: {figures['failed']}"
    return (
        f"transformer {figures['parameters'] / 1e9:.2f} B parameters, "
        f"adapter {figures['adapter_parameters'] / 1e6:.1f} M; "
        f"resident {_number(figures['resident_gb'], '.2f')} GB, "
        f"after the adapters {_number(figures['after_adapter_gb'], '.2f')} GB"
    )


def _case_line(case: Mapping[str, Any]) -> str:
    name = f"step {case['resolution_px']} px, checkpointing {'on' if case['gradient_checkpointing'] else 'off'}"
    if "failed" in case:
        return f"{name:<34}  {case['failed']}"
    loss = _number(case["loss"], ".4f") if case["finite"] else "NOT FINITE"
    rates = (_number(case["tflop_s"], ".3g"), _number(case["share_of_floor"], ".0%"), loss)
    return COLUMNS.format(name, *_time_and_memory(case["step"], case["peak_memory"]), *rates)


def _encode_line(name: str, figures: Mapping[str, Any]) -> str:
    if "failed" in figures:
        return f"{name:<34}  {figures['failed']}"
    weights = " + ".join(f"{size_gb:.2f} {dtype}" for dtype, size_gb in figures["weights_gb"].items())
    line = COLUMNS.format(
        f"{name}, {figures['input']}", *_time_and_memory(figures["encode"], figures["peak_memory"]), "", "", ""
    )
    return f"{line.rstrip()}   weights {weights} GB" + ("" if figures["finite"] else ", NOT FINITE")


def _service_lines(figures: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> list[str]:
    if isinstance(figures, Mapping):
        return [f"{'encoders':<34}  {figures['failed']}"]
    return [_service_line(case) for case in figures]


def _service_line(case: Mapping[str, Any]) -> str:
    held = "one at a time" if case["one_at_a_time"] else "all"
    name = f"encoders, {case['t5_precision']}, {held}{', tiles' if case['vae_tiling'] else ''}"
    peak = case["peak_memory"]
    allocated, reserved = (_number(peak[kind], ".2f") if peak else NONE for kind in ("allocated_gb", "reserved_gb"))
    within = {True: "within 10 GiB", False: "MORE THAN 10 GiB", None: ""}[case["within_goal"]]
    seconds = f"{case['seconds']:.1f}"
    line = COLUMNS.format(name, seconds, "with loading", allocated, reserved, "", "", "")
    return f"{line.rstrip()}   {case['resolution_px']} px {within}".rstrip()


def _time_and_memory(durations: Mapping[str, Any], peak: Mapping[str, Any] | None) -> tuple[str, str, str, str]:
    span = f"{durations['min_s']:.3f}-{durations['max_s']:.3f}"
    memory = ("allocated_gb", "reserved_gb")
    allocated, reserved = (_number(peak[name], ".2f") if peak else NONE for name in memory)
    return f"{durations['median_s']:.3f}", span, allocated, reserved


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text())))
