"""The outline of an adapter's file, from its header alone: type, layers, shapes, and what is left out of it.

It is taken when a job is created, and again by the worker, before any tensor is loaded. Shapes here are those that the
job's adapter must have, by the names of `adapter_parameters`.

Legend: O outputs of a layer, I inputs, R rank.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.common.safetensors_header import Entry, Header
from services.trainer.adapters.file_names import (
    ALPHA,
    BIAS,
    DORA_SCALE,
    LENGTHS,
    LOHA,
    LOKR,
    A,
    B,
    Layer,
    UnknownForm,
    read_names,
)
from services.trainer.config.choices import AdapterType
from services.trainer.config.expressions import matched_in_full

LARGEST_FLOAT32_BYTES = 12 << 30  # rank 512 on every linear layer of FLUX.1-dev is 11.1e9
LONGEST_PATTERNS = 200_000  # a name in full for every layer of FLUX.1-dev is 30,000
MOST_PATTERNS = 1000  # FLUX.1-dev has 504 linear layers, and trainers write a name for each
MOST_EXPRESSIONS = 100  # of them that are more than a name, each of which is tried on every layer
LARGEST_ALPHA = 1e6
DESCRIPTION = "lora_adapter_metadata"
_PREFIX = "transformer."
_NAMED = 3
_NAME_ALONE = re.compile(r"\^?((?:[\w-]|\\?\.)+)\$?", re.ASCII)

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What a file holds.

    `shapes` are those of the tensors that it gives to modules, by the names of `adapter_parameters`; `fused` are layers
    whose tensors tell only when they are read which of their modules they adapt, with the rank of each. `parts` has the
    file's keys, and `scales` by layer what its change is multiplied by as far as the header says it.
    """

    adapter_type: AdapterType
    parts: Mapping[Layer, Mapping[str, str]]
    shapes: Mapping[str, Shape]
    fused: Mapping[Layer, int]
    scales: Mapping[Layer, float]
    left_out: Mapping[str, int]

    @property
    def modules(self) -> set[str]:
        """Names of the modules that it surely adapts."""
        return {module for layer in self.parts if layer not in self.fused for module in layer.modules}

    @property
    def ranks(self) -> set[int]:
        """The ranks of its modules, without those of fused layers; empty for LoKr."""
        found = {shape[0] for name, shape in self.shapes.items() if name.endswith((".lora_A.weight", ".hada_w1_b"))}
        return found if self.adapter_type is not AdapterType.LOKR else set()

    def left_out_in_words(self) -> str:
        """What of the file is not read, with how many tensors; empty when all of it is."""
        counted = (f"{count} tensor{'s' * (count != 1)} of {what}" for what, count in sorted(self.left_out.items()))
        return " and ".join(counted)


def outline_of(header: Header) -> Outline:
    """The outline of a file with this header. Raises `UnknownForm` and other `ValueError`s."""
    names = read_names(header.tensors)
    if not names.layers:
        only = " and ".join(sorted(names.left_out))
        raise UnknownForm(f"it adapts {only} and no transformer" if only else "it has no tensors")
    if header.float32_bytes > LARGEST_FLOAT32_BYTES:
        raise UnknownForm(
            f"it has {header.float32_bytes:,} bytes in float32, and an adapter may have {LARGEST_FLOAT32_BYTES:,}"
        )
    for layer, parts in names.layers.items():
        _check_tensors(layer, {part: header.tensors[key] for part, key in parts.items()})
    kind = _type_of(names.layers)
    _refuse_untold_lengths(names.layers, header)
    shapes: dict[str, Shape] = {}
    fused: dict[Layer, int] = {}
    for layer, parts in names.layers.items():
        entries = {part: header.tensors[key].shape for part, key in parts.items()}
        if kind is AdapterType.LORA and len(layer.modules) > 1:
            _rows(layer, entries[B][0])
            fused[layer] = entries[A][0]
        else:
            shapes |= _shapes(layer, entries)
    ranks = {layer: header.tensors[parts[A]].shape[0] for layer, parts in names.layers.items() if A in parts}
    return Outline(
        adapter_type=kind,
        parts=names.layers,
        shapes=shapes,
        fused=fused,
        scales=_scales(_description(header.metadata), ranks),
        left_out=names.left_out,
    )


def some(names: Iterable[str]) -> str:
    """The first few of some names, and how many more there are."""
    names = sorted(names)
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _check_tensors(layer: Layer, entries: Mapping[str, Entry]) -> None:
    """Raise `ValueError` unless a layer's tensors are together one of the kinds of adapters, and fit each other."""
    if BIAS in entries:
        raise UnknownForm(
            f"it trains biases (lora_bias), such as that of {layer.title}, which no job here does",
            "Train it again without biases, or leave them out of the file where they are small.",
        )
    for part, entry in entries.items():
        _check_tensor(layer, part, entry)
    shapes = {part: entry.shape for part, entry in entries.items()}
    if {A, B} & set(shapes):
        _check_factors(layer, shapes, (A, B))
        if lengths := entries.get(LENGTHS) or entries.get(DORA_SCALE):
            _check_lengths(layer, lengths, shapes)
    else:
        _check_products(layer, shapes)


def _check_tensor(layer: Layer, part: str, entry: Entry) -> None:
    if not entry.is_floating_point or not entry.numbers:
        raise ValueError(f"{part} of {layer.title} is {entry.dtype} of shape {entry.shape}, not numbers to train")
    if part == ALPHA and entry.numbers != 1:
        raise ValueError(f"alpha of {layer.title} has shape {entry.shape}, where one number belongs")
    if part not in (ALPHA, LENGTHS, DORA_SCALE) and len(entry.shape) != 2:
        raise ValueError(f"{part} of {layer.title} has shape {entry.shape}, and is not a matrix")


def _check_products(layer: Layer, shapes: Mapping[str, Shape]) -> None:
    """The same for the products of LoHa and LoKr."""
    if set(shapes) & set(LOHA):
        _check_factors(layer, shapes, ("hada_w1_b", "hada_w1_a"))
        _check_factors(layer, shapes, ("hada_w2_b", "hada_w2_a"))
        if shapes["hada_w1_a"] != shapes["hada_w2_a"] or shapes["hada_w1_b"] != shapes["hada_w2_b"]:
            raise ValueError(f"the two products of {layer.title} have other shapes than each other")
    elif set(shapes) & set(LOKR):
        for side in ("lokr_w1", "lokr_w2"):
            if side not in shapes:
                _check_factors(layer, shapes, (f"{side}_b", f"{side}_a"))
    else:
        raise ValueError(f"{layer.title} has {some(shapes)} without factors")
    if {LENGTHS, DORA_SCALE} & set(shapes):
        raise UnknownForm(f"{layer.title} has LoKr or LoHa with trained lengths (DoRA), which no job here trains")


def _check_factors(layer: Layer, shapes: Mapping[str, Shape], pair: tuple[str, str]) -> None:
    """`pair` names the matrix of shape (R, I) and that of (O, R)."""
    if lacking := [part for part in pair if part not in shapes]:
        raise ValueError(f"{layer.title} lacks {' and '.join(lacking)}")
    right, left = shapes[pair[0]], shapes[pair[1]]
    if right[0] != left[1]:
        raise ValueError(f"{layer.title} has rank {right[0]} on one side and {left[1]} on the other")


def _check_lengths(layer: Layer, lengths: Entry, shapes: Mapping[str, Shape]) -> None:
    outputs, inputs = shapes[B][0], shapes[A][1]
    per_input = lengths.shape == (1, inputs) and inputs > 1
    if DORA_SCALE in shapes and per_input:
        raise UnknownForm(
            f"its DoRA has a length for each input of {layer.title}, and jobs here train one for each output",
            "Train it with lengths on outputs (wd_on_output in LyCORIS), or begin with a LoRA.",
        )
    if lengths.numbers != outputs or (DORA_SCALE in shapes and lengths.shape != (outputs, 1)):
        raise ValueError(f"the lengths of {layer.title} have shape {lengths.shape}, and it has {outputs} outputs")


def _type_of(layers: Mapping[Layer, Mapping[str, str]]) -> AdapterType:
    kinds: dict[AdapterType, Layer] = {}
    for layer, parts in layers.items():
        if A in parts:
            kinds.setdefault(AdapterType.DORA if {LENGTHS, DORA_SCALE} & set(parts) else AdapterType.LORA, layer)
        else:
            kinds.setdefault(AdapterType.LOHA if set(parts) & set(LOHA) else AdapterType.LOKR, layer)
    if len(kinds) > 1:
        told = " and ".join(f"{kind} ({layer.title})" for kind, layer in sorted(kinds.items()))
        raise UnknownForm(f"it has layers of several types, {told}, and a job trains one")
    return next(iter(kinds))


def _refuse_untold_lengths(layers: Mapping[Layer, Mapping[str, str]], header: Header) -> None:
    """Raise for a `dora_scale` that does not say of what it is the length.

    LyCORIS and OneTrainer, which say so in the header, train lengths of W + BA; ComfyUI takes them for a factor of
    (W + BA) / |W|, so that files for it may hold something else under the same name.
    """
    if not any(DORA_SCALE in parts for parts in layers.values()):
        return
    if any(name.startswith("fluxsmith.") for name in header.metadata):
        raise UnknownForm(
            "its dora_scale is corrected for ComfyUI, and the lengths that were trained are not in it",
            "Begin with lora.safetensors of the same job.",
        )
    trained = "lycoris" in header.metadata.get("ss_network_module", "") or "ot_config" in header.metadata
    if not trained and not any(name.startswith("ot_") for name in header.metadata):
        raise UnknownForm(
            "its dora_scale may be lengths of W + BA, or corrected for ComfyUI, and its header does not say which",
            "Give the file as LyCORIS or OneTrainer wrote it, header included, or with lora_magnitude_vector.",
        )


def _rows(layer: Layer, outputs: int) -> list[int]:
    """Outputs of each of a layer's modules."""
    if outputs % sum(layer.shares):
        raise ValueError(f"{layer.title} has {outputs} outputs, which do not split {layer.shares}")
    return [share * outputs // sum(layer.shares) for share in layer.shares]


def _shapes(layer: Layer, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Shapes of what a layer's tensors become, by the names of `adapter_parameters`."""
    return {
        f"{module}.{name}": shape
        for module, part_shapes in zip(layer.modules, _split_shapes(layer, shapes), strict=True)
        for name, shape in part_shapes.items()
    }


def _split_shapes(layer: Layer, shapes: Mapping[str, Shape]) -> Iterator[dict[str, Shape]]:
    if A in shapes:
        for rows in _rows(layer, shapes[B][0]):
            lengths = {"lora_magnitude_vector.weight": (rows,)} if {LENGTHS, DORA_SCALE} & set(shapes) else {}
            yield {"lora_A.weight": shapes[A], "lora_B.weight": (rows, shapes[B][1]), **lengths}
    elif "hada_w1_a" in shapes:
        for rows in _rows(layer, shapes["hada_w1_a"][0]):
            rank = shapes["hada_w1_a"][1]
            yield {name: (rows, rank) if name.endswith("_a") else shapes[name] for name in LOHA}
    else:
        small = shapes.get("lokr_w1") or (shapes["lokr_w1_a"][0], shapes["lokr_w1_b"][1])
        large = {name: shapes[name] for name in LOKR if name.startswith("lokr_w2") and name in shapes}
        divided = 2 if layer.swapped else sum(layer.shares)
        if small[0] % divided:
            raise UnknownForm(
                f"{layer.title} is one LoKr over {len(layer.modules)} layers of diffusers, whose smaller matrix has "
                f"{small[0]} rows and does not divide among them",
                "Begin with a LoKr that was trained on q, k and v apart, or with a LoRA.",
            )
        for rows in _rows(layer, small[0]):
            yield {"lokr_w1": (rows, small[1]), **large}


def _description(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Peft's configuration in a file's header, without prefix; empty where there is none."""
    try:
        description = json.loads(metadata.get(DESCRIPTION, "{}"))
    except (ValueError, RecursionError):
        raise ValueError(f"{DESCRIPTION} is not JSON") from None
    if not isinstance(description, dict):
        raise ValueError(f"{DESCRIPTION} is not an object")
    return {key.removeprefix(_PREFIX): value for key, value in description.items()}


def _scales(description: Mapping[str, Any], ranks: Mapping[Layer, int]) -> dict[Layer, float]:
    """Each layer's alpha / rank, or alpha / sqrt(rank) for rsLoRA; empty where the header is silent."""
    if "lora_alpha" not in description or not ranks:
        return {}
    root = 0.5 if description.get("use_rslora") else 1.0
    titles = {layer.title: layer for layer in ranks}
    try:
        alphas: dict[Layer, float] = {}
        patterns = description.get("alpha_pattern") or {}
        _refuse_no_alphas(description["lora_alpha"], patterns)
        _refuse_costly(patterns)
        for pattern, alpha in patterns.items():
            # A stranger's expressions, so RE2 matches them. Peft takes suffixes too.
            for title in matched_in_full(rf"(?:.*\.)?(?:{pattern})", _candidates(pattern, sorted(titles))):
                alphas.setdefault(titles[title], float(alpha))  # the first that matches counts, as in peft
        alphas = dict.fromkeys(ranks, float(description["lora_alpha"])) | alphas
    except OverflowError:
        raise ValueError(f"{DESCRIPTION} has an alpha beyond all floating-point numbers") from None
    if wrong := sorted(layer.title for layer, alpha in alphas.items() if not 0 < abs(alpha) <= LARGEST_ALPHA):
        raise ValueError(f"{DESCRIPTION} has alpha {alphas[titles[wrong[0]]]:g} for {wrong[0]}")
    return {layer: alpha / ranks[layer] ** root for layer, alpha in alphas.items()}


def _refuse_costly(patterns: Mapping[str, Any]) -> None:
    """Raise unless it costs less than a second or two to match the patterns of a header with all layers."""
    expressions = sum(not _NAME_ALONE.fullmatch(pattern) for pattern in patterns)
    for count, most, what in (
        (sum(map(len, patterns)), LONGEST_PATTERNS, "characters"),
        (len(patterns), MOST_PATTERNS, "entries"),
        (expressions, MOST_EXPRESSIONS, "expressions that are more than a name"),
    ):
        if count > most:
            raise ValueError(f"alpha_pattern of {DESCRIPTION} has over {most:,} {what}")


def _candidates(pattern: str, titles: Sequence[str]) -> Sequence[str]:
    """The layers that a pattern may match: of one that is a name alone, those that end so; else all.

    Its dots may stand for the underscores of joined names.
    """
    if not (name := _NAME_ALONE.fullmatch(pattern)):
        return titles
    end = name[1].replace("\\", "").replace(".", "_")
    return [title for title in titles if title.replace(".", "_").endswith(end)]


def _refuse_no_alphas(alpha: Any, patterns: Any) -> None:
    """Raise unless a header's alpha is a number, and its pattern an object of such."""
    if not isinstance(patterns, dict):
        raise ValueError(f"alpha_pattern of {DESCRIPTION} is {_shown(patterns)}, and no object of a number by layer")
    for what, value in [("lora_alpha", alpha), *((f"alpha_pattern {_shown(key)}", patterns[key]) for key in patterns)]:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{what} of {DESCRIPTION} is {_shown(value)}, and no number")


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
