"""`fluxsmith estimate`: the GPU memory that a configuration would need, before anything is queued."""

import re
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table

from fluxsmith.cli.completion import choices_of
from fluxsmith.cli.config_options import option_for, with_memory_options
from fluxsmith.cli.fitting import fitted
from fluxsmith.cli.listing import empty_table
from fluxsmith.cli.session import Session
from fluxsmith.cli.text import size_text, to_json
from fluxsmith.memory import EstimatedModel, MemoryEstimate
from fluxsmith.training import TrainConfig

_MOST_ROWS = 5


@with_memory_options
def estimate(
    context: typer.Context,
    *,
    config: TrainConfig,
    resolution: Annotated[
        int,
        typer.Option(metavar="PX", show_default=False, help="Side of the largest images, made square. (default 1024)"),
    ] = 1024,
    model: Annotated[
        EstimatedModel,
        typer.Option(
            metavar="MODEL",
            autocompletion=choices_of(EstimatedModel),
            case_sensitive=False,
            show_default=False,
            help="loaded, what the trainer holds, or flux_1_dev, whatever it holds. (default loaded)",
        ),
    ] = EstimatedModel.LOADED,
    as_json: Annotated[bool, typer.Option("--json", help="Print the estimate as JSON.")] = False,
) -> None:
    """Show the GPU memory that training would need, part by part, and what would need less.

    Nothing is queued. Those options of `fluxsmith train` that change no memory, such as --steps, are taken too.
    """
    session: Session = context.obj
    with session.client() as client:
        found = client.estimate_memory(config, resolution_px=resolution, model=model)
    if as_json:
        typer.echo(to_json(found))
    else:
        session.out.print(_shown(found, session.out))


def fit_text(estimate: MemoryEstimate) -> str:
    """Return whether the trainer's GPU has room for it."""
    need, has = size_text(estimate.recommended_bytes), size_text(estimate.device_bytes)
    if not estimate.device_bytes:
        return f"{need} are advised. The trainer has no GPU; it would take main memory."
    if estimate.device_bytes >= estimate.recommended_bytes:
        return f"It fits: the trainer's GPU has {has}, and {need} are advised."
    if estimate.device_bytes >= estimate.peak_bytes:
        return f"It may just fit: the trainer's GPU has {has}; {need} are advised."
    return f"It does not fit: the trainer's GPU has {has}, and {need} are advised. See below what would need less."


def _shown(estimate: MemoryEstimate, console: Console) -> RenderableType:
    shown: list[RenderableType] = [_parts(estimate), "", fit_text(estimate)]
    if estimate.savings:
        table = empty_table("what would need less", "saves")
        for saving in estimate.savings[:_MOST_ROWS]:
            table.add_row(escape(_as_option(saving.change)), size_text(saving.bytes))
        shown += ["", fitted(table, console)]
    if estimate.measurements:
        table = empty_table("measured", "tensors", "taken", "on")
        for run in estimate.measurements[:_MOST_ROWS]:
            sizes = size_text(run.allocated_bytes), size_text(run.reserved_bytes)
            table.add_row(escape(run.configuration), *sizes, escape(f"{run.device}, {run.date}"))
        shown += ["", fitted(table, console)]
    return Group(*shown)


def _as_option(change: str) -> str:
    """Return a change as it is made here; as the trainer has it where that is said in other words."""
    if side := re.fullmatch(r"encode at a resolution_px of (\d+)", change):
        return f"--resolution {side[1]}"
    if wanted := re.fullmatch(r"set (\w+)(?: to (\w+))?", change):
        return option_for(wanted[1], wanted[2] or "yes")
    return change


def _parts(estimate: MemoryEstimate) -> Table:
    table = empty_table("part", "size", "what it is")
    for part in estimate.parts:
        table.add_row(part.name, size_text(part.bytes), escape(part.explanation))
    table.add_row("peak", size_text(estimate.peak_bytes), "the sum", style="bold")
    return table
