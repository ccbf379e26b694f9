"""The benchmark of T5's precisions on flux-tiny's T5 and a few captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.encoding import random_t5_weights
from benchmarks.scales import TINY
from benchmarks.t5_precision import demo_captions, drift, main


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    """Each precision's figures."""
    folder = tmp_path_factory.mktemp("precision")
    assert main(["--captions", "4", "--out", str(folder)]) == 0
    written = json.loads((folder / "t5-precision-flux-tiny-cpu.json").read_text())
    return {(row["precision"], row["rest"]): row for row in written["rows"]}


def test_every_precision_is_measured(rows: dict[tuple[str, str], dict[str, Any]]) -> None:
    assert {precision for precision, _ in rows} == {"fp32", "bf16", "int8", "nf4"}
    assert all(row["seconds_a_caption"] > 0 for row in rows.values())


def test_nothing_drifts_from_itself(rows: dict[tuple[str, str], dict[str, Any]]) -> None:
    assert rows["fp32", "float32"]["against_fp32"]["relative_error_max"] == 0
    assert rows["bf16", "bfloat16"]["against_bf16"]["relative_error_max"] == 0


def test_fewer_bits_take_less_memory_and_drift_more(rows: dict[tuple[str, str], dict[str, Any]]) -> None:
    by_bits = [rows[key] for key in (("fp32", "float32"), ("int8", "float32"), ("nf4", "float32"))]
    sizes = [sum(row["weights_gb"].values()) for row in by_bits]
    errors = [row["against_fp32"]["relative_error_median"] for row in by_bits]
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)


def test_drift_tells_tokens_from_padding() -> None:
    theirs = [torch.eye(4)]
    ours = [torch.eye(4) * 2]
    ours[0][3] = torch.tensor([1.0, 0, 0, 0])  # the last position, which is padding, points elsewhere
    found = drift(ours, theirs, [3])
    assert (found.cosine_min_tokens, found.cosine_min_all) == (1, 0)
    assert found.relative_error_max == pytest.approx((5**0.5) / 2)


def test_random_weights_have_the_spread_of_t5s_own_initialisation() -> None:
    weights = random_t5_weights(TINY.t5, torch.device("cpu"))
    query = weights["encoder.block.0.layer.0.SelfAttention.q.weight"].float()
    assert float(query.std()) == pytest.approx((TINY.t5["d_model"] * TINY.t5["d_kv"]) ** -0.5, rel=0.05)
    assert float(weights["shared.weight"].float().std()) == pytest.approx(1.0, rel=0.05)


def test_captions_are_about_fifty_and_of_several_lengths() -> None:
    captions = demo_captions()
    assert 40 < len(set(captions)) == len(captions) < 60
    assert len({len(caption.split()) for caption in captions}) > 3


def test_all_of_t5_xxl_on_a_cpu_is_refused(tmp_path: Path) -> None:
    assert main(["--model", "xxl", "--out", str(tmp_path)]) == 2
