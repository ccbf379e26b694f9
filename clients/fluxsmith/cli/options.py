"""The options that `fluxsmith train` alone has, beside those of its data and its configuration."""

from pathlib import Path
from typing import Annotated

import typer

from fluxsmith.cli.config_options import MEASURING
from fluxsmith.cli.output import output_file

_DATA = "Data"

Folder = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="Images, each with its caption in a .txt file of the same name.")
]

WarmStart = Annotated[
    str,
    typer.Option(
        metavar="FILE|URI", rich_help_panel="Adapter", help="LoRA to begin with: a file, or its address in the store."
    ),
]

HeldOut = Annotated[
    Path | None, typer.Option(metavar="FOLDER", rich_help_panel=MEASURING, help="Images to measure on, not to learn.")
]
StartEarly = Annotated[
    bool,
    typer.Option(
        "--start-early",
        rich_help_panel=_DATA,
        help="Train on the images that are done while others are still being encoded. Not with --epochs.",
    ),
]

Name = Annotated[str, typer.Option(metavar="NAME", help="Name of the job for people. (default the folder's)")]
User = Annotated[str, typer.Option(metavar="USER", help="User of your product that the job is for.")]
Priority = Annotated[
    int,
    typer.Option(
        min=-100,
        max=100,
        metavar="N",
        show_default=False,
        help="Of your waiting jobs, the highest goes first. (default 0)",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        parser=output_file,
        metavar="FILE",
        help="The LoRA file. (default FOLDER.safetensors, here)",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the finished job as JSON.")]
