"""Whether the adapter of a file is that of a job: of its type, on its modules, of its ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from services.common.errors import FieldViolation, InvalidInput
from services.trainer.adapters.outline import Outline, Shape, some
from services.trainer.config.choices import AdapterType
from services.trainer.config.fields import ConfigFields
from services.trainer.estimate.architecture import Linear

FIELD = "config.warm_start_uri"


def adapter_shapes(
    layers: Mapping[str, Linear], ranks: Mapping[str, int], config: ConfigFields
) -> dict[str, tuple[int, ...]]:
    """Shapes of the adapter that a job trains, by the names of `adapter_parameters`, which peft gives them."""
    return {
        f"{module}.{name}": shape
        for module, rank in ranks.items()
        for name, shape in layer_shapes(layers[module], rank, config)
    }


def layer_shapes(layer: Linear, rank: int, config: ConfigFields) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of what a job trains for one layer."""
    match config.adapter_type:
        case AdapterType.LORA | AdapterType.DORA:
            yield "lora_A.weight", (rank, layer.inputs)
            yield "lora_B.weight", (layer.outputs, rank)
            if config.adapter_type is AdapterType.DORA:
                yield "lora_magnitude_vector.weight", (layer.outputs,)
        case AdapterType.LOHA:
            for number in (1, 2):
                yield f"hada_w{number}_a", (layer.outputs, rank)
                yield f"hada_w{number}_b", (rank, layer.inputs)
        case AdapterType.LOKR:
            small_in, large_in = kronecker_sides(layer.inputs, config.lokr_factor or -1)
            small_out, large_out = kronecker_sides(layer.outputs, config.lokr_factor or -1)
            yield "lokr_w1", (small_out, small_in)
            if rank >= max(large_out, large_in) / 2:
                yield "lokr_w2", (large_out, large_in)
            else:
                yield "lokr_w2_a", (large_out, rank)
                yield "lokr_w2_b", (rank, large_in)


def kronecker_sides(width: int, factor: int) -> tuple[int, int]:
    """Two numbers whose product is `width`, the smaller one first: how peft and LyCORIS divide a side for LoKr.

    `factor` is the first where it divides the width; else the first is the divisor nearest to the width's root, and
    not above `factor` unless that is -1.
    """
    if factor > 0 and width % factor == 0:
        return factor, width // factor
    most = width if factor == -1 else factor
    divisors = [side for side in range(1, int(width**0.5) + 1) if width % side == 0 and side <= most]
    small = divisors[-1] if divisors else 1
    return small, width // small


def refuse_unlike(outline: Outline, config: ConfigFields, shapes: Mapping[str, Shape]) -> None:
    """Raise `InvalidInput` (WARM_START_MISMATCH) when a file is of another type, on other modules, or of other ranks.

    `shapes` are those of the job's adapter. Of fused layers, whose modules are known only when their tensors are read,
    the job may adapt any, with a rank up to theirs.
    """
    refuse_other_type(outline, config)
    wanted = {module_of(name) for name in shapes}
    perhaps = {module for layer in outline.fused for module in layer.modules}
    besides = outline.modules - wanted
    besides |= {layer.title for layer in outline.fused if not wanted & set(layer.modules)}
    lacking = wanted - outline.modules - perhaps
    if besides or lacking:
        sides = (("lacks", lacking), ("has besides", besides))
        told = [f"{verb} {some(names)}" for verb, names in sides if names]
        count = len(outline.modules | perhaps)
        raise mismatch(
            f"for {count} modules, the job adapts {len(wanted)}: the file {' and '.join(told)}",
            "Set targets, or target_regex, so that the job adapts the modules of the file.",
        )
    known = {name: shape for name, shape in shapes.items() if module_of(name) not in perhaps}
    wrong = sorted(name for name in known.keys() | outline.shapes.keys() if known.get(name) != outline.shapes.get(name))
    if wrong:
        first = wrong[0]
        found, job = (each.get(first, "not there") for each in (outline.shapes, known))
        raise mismatch(
            f"of other shapes in {len(wrong)} tensors: {first} is {found}, the job's {job}",
            _remedy_of_shapes(outline, known),
        )
    for layer, rank in sorted(outline.fused.items(), key=lambda item: item[0].title):
        for name in sorted(f"{module}.lora_A.weight" for module in layer.modules):
            if name in shapes and shapes[name][0] > rank:
                raise mismatch(
                    f"of other shapes: {layer.title} has rank {rank}, the job's {name} {shapes[name][0]}",
                    f"Set rank to {rank} at most, without rank_pattern.",
                )


def refuse_other_type(outline: Outline, config: ConfigFields) -> None:
    """Raise `InvalidInput` (WARM_START_MISMATCH) when a file is of another type than the job's."""
    if outline.adapter_type is not config.adapter_type:
        kind = outline.adapter_type
        raise mismatch(f"of type {kind}, not {config.adapter_type}", f"Set adapter_type to {kind}.")


def refuse_other_rank(outline: Outline, config: ConfigFields) -> None:
    """The same for one rank everywhere, where the base's layers are not known."""
    if not config.rank_pattern and outline.ranks and outline.ranks != {config.rank}:
        told = " and ".join(map(str, sorted(outline.ranks)[:3]))
        raise mismatch(f"of rank {told}, not {config.rank}", _remedy_of_ranks(outline))


def module_of(name: str) -> str:
    """The module of a tensor by its name in `adapter_parameters`."""
    return name.removesuffix(".weight").rpartition(".")[0]


def mismatch(what: str, remedy: str) -> InvalidInput:
    """The refusal of a file that is not like the job's adapter."""
    return refusal(f"names an adapter {what}", reason="WARM_START_MISMATCH", remedy=remedy)


def refusal(description: str, *, reason: str, remedy: str) -> InvalidInput:
    """The refusal of a file to begin with."""
    return InvalidInput(
        f"{FIELD} {description}",
        reason=reason,
        remedy=remedy,
        violations=(FieldViolation(field=FIELD, description=description),),
    )


def _remedy_of_shapes(outline: Outline, shapes: Mapping[str, Shape]) -> str:
    """What to set, and nothing that is set so already."""
    ranks = {shape[0] for name, shape in shapes.items() if name.endswith((".lora_A.weight", ".hada_w1_b"))}
    if outline.ranks and ranks == outline.ranks:
        return "The ranks are the same: the file is of a model with layers of other widths. Take one of this base."
    return _remedy_of_ranks(outline)


def _remedy_of_ranks(outline: Outline) -> str:
    if len(outline.ranks) == 1:
        return f"The file has rank {next(iter(outline.ranks))}: set rank to it, without rank_pattern."
    return "Set rank, rank_pattern and lokr_factor to what the file was trained with."
