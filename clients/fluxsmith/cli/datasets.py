"""`fluxsmith datasets`: what was uploaded, and removing it again."""

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from fluxsmith.cli.completion import complete_dataset
from fluxsmith.cli.fitting import fitted
from fluxsmith.cli.help import Command, Group, help_of
from fluxsmith.cli.listing import AsJson, empty_table
from fluxsmith.cli.session import Session
from fluxsmith.cli.text import time_text, to_json
from fluxsmith.data import Dataset


def datasets(context: typer.Context, as_json: AsJson = False) -> None:
    """List datasets; `fluxsmith datasets delete` removes some.

    Each `fluxsmith train` uploads one, which stays.
    """
    if context.invoked_subcommand:
        return
    session: Session = context.obj
    with session.client() as client:
        found = list(client.datasets.list())
    if as_json:
        typer.echo(to_json(found))
    elif found:
        session.out.print(fitted(_datasets_table(found), session.out))
    else:
        session.say("No datasets yet.")


def delete(
    context: typer.Context,
    dataset_ids: Annotated[
        list[str],
        typer.Argument(metavar="DATASET", help="As `fluxsmith datasets` lists them.", autocompletion=complete_dataset),
    ],
) -> None:
    """Remove datasets with their images, for good and without asking.

    Jobs that were made of them go on or can be resumed, and LoRAs stay: both have what they need. Refused for one that
    is being encoded; those named before it are removed then.
    """
    session: Session = context.obj
    with session.client() as client:
        for dataset_id in dataset_ids:
            client.datasets.delete(dataset_id)
            session.tell(f"dataset {dataset_id} is deleted")


group = typer.Typer()
group.callback(cls=Group, invoke_without_command=True, help=help_of(datasets))(datasets)
group.command(cls=Command, help=help_of(delete))(delete)


def _datasets_table(found: list[Dataset]) -> Table:
    table = empty_table("dataset", "state", "samples", "encoded", "created", "name")
    for dataset in found:
        table.add_row(
            dataset.id,
            dataset.state.lower(),
            str(dataset.sample_count),
            str(dataset.encoded_count),
            time_text(dataset.create_time),
            escape(dataset.name),
        )
    return table
