"""How far T5's embeddings move when its weights are rounded: each precision against fp32 and against bf16.

    python -m benchmarks.t5_precision --out DIR                    flux-tiny's T5, trained, on its own captions
    python -m benchmarks.t5_precision --model xxl-layers --out DIR T5-XXL's layers, two of them, random weights
    python -m benchmarks.t5_precision --model xxl --device cuda --out DIR

Random weights have no outliers of the kind that trained T5-XXL has, and LLM.int8 is about those: their figures show
rounding, memory and time, and not what int8 or nf4 do to a caption of FLUX.1-dev.

Legend: S tokens, D width.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import T5EncoderModel

from benchmarks.encoding import random_t5_weights, t5_of
from benchmarks.measure import release, weights_gb
from benchmarks.scales import T5_XXL
from services.common.logs import hide_progress_bars, set_up_logging
from services.encoder.inference import CaptionTokenizer
from services.encoder.loading import LoadChoices, Precision, load_t5, load_tokenizers

ASSETS = Path(__file__).resolve().parent.parent / "assets"
FLUX_TINY = ASSETS / "flux-tiny"
VOCABULARIES = {"text_encoder": 49408, "text_encoder_2": 32128}
# Precision of the quantised weights, and of everything else.
ROWS: tuple[tuple[Precision, torch.dtype], ...] = (
    ("fp32", torch.float32),
    ("bf16", torch.bfloat16),
    ("int8", torch.float32),
    ("int8", torch.bfloat16),
    ("nf4", torch.float32),
    ("nf4", torch.bfloat16),
)
LINE = "{:<12}{:<6}{:>9}{:>9}  {:>22}{:>22}{:>22}{:>22}{:>20}{:>20}"


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Distance of one precision's embeddings from another's, over all captions."""

    cosine_min_tokens: float
    cosine_median_tokens: float
    """Per position, over the positions that hold a token of a caption."""
    cosine_min_all: float
    cosine_median_all: float
    """Per position, over all, padding too: FLUX attends to all of them."""
    relative_error_median: float
    relative_error_max: float
    """|a - b| / |b| of a caption's whole embedding."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One precision."""

    precision: str
    rest: str
    """Type of the weights that are not quantised (`wo`, norms, embeddings) and of the activations."""
    weights_gb: dict[str, float]
    """Size of the weights by type, without the scales of the quantised ones (nf4: 1/8 of their size more)."""
    seconds_a_caption: float
    """Median."""
    against_fp32: Drift
    against_bf16: Drift


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write, print."""
    options = _parser().parse_args(arguments)
    device = torch.device(options.device)
    if options.model == "xxl" and device.type == "cpu":
        print(
            "benchmarks.t5_precision: all of T5-XXL wants a GPU; `--model xxl-layers` has its layers", file=sys.stderr
        )
        return 2
    set_up_logging("WARNING")
    hide_progress_bars()
    captions = demo_captions()[: options.captions]
    _, tokenizer = load_tokenizers(FLUX_TINY, VOCABULARIES)
    tokens = tokenizer.tokens if options.model == "flux-tiny" else 512
    rows = measured(
        loader(options.model, options.layers, device), CaptionTokenizer(tokenizer.tokenizer, tokens), captions
    )
    threads = f"{torch.get_num_threads()} threads"
    where = f"{options.model}, {len(captions)} captions of {tokens} tokens, {device.type}, {threads}"
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"t5-precision-{options.model}-{device.type}.json"
    path.write_text(json.dumps({"what": where, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    print(f"{where}\n{table(rows)}")
    return 0


def measured(
    load: Callable[[Precision, torch.dtype], T5EncoderModel], tokenizer: CaptionTokenizer, captions: Sequence[str]
) -> list[Row]:
    """Every precision in turn, one model in memory at a time; the first two rows are what all are held against."""
    embeddings, facts = [], []
    for precision, rest in ROWS:
        t5 = load(precision, rest)
        outputs, seconds = embedded(t5, tokenizer, captions)
        embeddings.append(outputs)
        facts.append((precision, str(rest).removeprefix("torch."), weights_gb(t5), seconds))
        del t5
        release()
    real = [min(tokenizer.tokens, len(tokenizer.tokenizer(caption).input_ids)) for caption in captions]
    return [
        Row(
            precision=precision,
            rest=rest,
            weights_gb=sizes,
            seconds_a_caption=seconds,
            against_fp32=drift(outputs, embeddings[0], real),
            against_bf16=drift(outputs, embeddings[1], real),
        )
        for (precision, rest, sizes, seconds), outputs in zip(facts, embeddings, strict=True)
    ]


@torch.inference_mode()
def embedded(t5: T5EncoderModel, tokenizer: CaptionTokenizer, captions: Sequence[str]) -> tuple[list[Tensor], float]:
    """Each caption's embedding (S, D) on the CPU in float32, and the median of the seconds that one took."""
    t5(tokenizer.ids(captions[0]).to(t5.device))  # the first call prepares things that later ones find done
    outputs, seconds = [], []
    for caption in captions:
        start = time.perf_counter()
        output_SD: Tensor = t5(tokenizer.ids(caption).to(t5.device))[0][0]
        outputs.append(output_SD.float().cpu())
        seconds.append(time.perf_counter() - start)
    return outputs, statistics.median(seconds)


def drift(ours: Sequence[Tensor], theirs: Sequence[Tensor], real: Sequence[int]) -> Drift:
    """How far embeddings (S, D) lie from others of the same captions, whose first `real` positions hold tokens."""
    cosines = [cosine_similarity(a_SD.double(), b_SD.double(), dim=-1) for a_SD, b_SD in zip(ours, theirs, strict=True)]
    of_all = torch.cat(cosines)
    of_tokens = torch.cat([cosine_S[:count] for cosine_S, count in zip(cosines, real, strict=True)])
    errors = torch.stack([(a_SD - b_SD).norm() / b_SD.norm() for a_SD, b_SD in zip(ours, theirs, strict=True)])
    return Drift(
        cosine_min_tokens=float(of_tokens.min()),
        cosine_median_tokens=float(of_tokens.median()),
        cosine_min_all=float(of_all.min()),
        cosine_median_all=float(of_all.median()),
        relative_error_median=float(errors.median()),
        relative_error_max=float(errors.max()),
    )


def loader(model: str, layers: int, device: torch.device) -> Callable[[Precision, torch.dtype], T5EncoderModel]:
    """How the T5 that is measured is loaded in some precision: by the encoder's own functions."""

    def choices(precision: Precision, rest: torch.dtype) -> LoadChoices:
        return LoadChoices(device=device, dtype=rest, t5_precision=precision, vae_tiling=False)

    if model == "flux-tiny":
        return lambda precision, rest: load_t5(FLUX_TINY, choices(precision, rest))
    config = {**T5_XXL, "num_layers": T5_XXL["num_layers"] if model == "xxl" else layers}
    weights = random_t5_weights(config, device)
    return lambda precision, rest: t5_of(weights, config, choices(precision, rest))


def demo_captions() -> list[str]:
    """The captions of the demo's images, which are names that flux-tiny knows, and longer ones made of them."""
    names = sorted({path.read_text().strip() for path in (ASSETS / "demo").glob("*/*.txt")})
    pairs = [f"{first} and {second}" for first, second in pairwise(names)]
    return [*names, *pairs, ", ".join(names)]


def table(rows: Sequence[Row]) -> str:
    """The figures in lines."""
    heads = (
        "T5",
        "rest",
        "GB",
        "s",
        *(f"{what} {to}" for what in ("cos tokens", "cos all") for to in ("fp32", "bf16")),
    )
    return "\n".join([LINE.format(*heads, "error fp32", "error bf16"), *map(_line, rows)])


def _line(row: Row) -> str:
    drifts = (row.against_fp32, row.against_bf16)
    return LINE.format(
        row.precision,
        {"float32": "fp32", "bfloat16": "bf16"}[row.rest],
        f"{sum(row.weights_gb.values()):.4g}",
        f"{row.seconds_a_caption:.3g}",
        *(f"{each.cosine_min_tokens:.6f}/{each.cosine_median_tokens:.6f}" for each in drifts),
        *(f"{each.cosine_min_all:.6f}/{each.cosine_median_all:.6f}" for each in drifts),
        *(f"{each.relative_error_median:.5f}/{each.relative_error_max:.5f}" for each in drifts),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.t5_precision")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the JSON file")
    parser.add_argument("--device", default="cpu", help="torch device (default: %(default)s)")
    parser.add_argument("--model", choices=("flux-tiny", "xxl-layers", "xxl"), default="flux-tiny", help="which T5")
    parser.add_argument("--layers", type=int, default=2, help="layers of xxl-layers (default: %(default)s)")
    parser.add_argument("--captions", type=int, default=50, help="most captions (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
