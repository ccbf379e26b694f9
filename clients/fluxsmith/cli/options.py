"""The options that `fluxsmith train` alone has, each with its help, which names the services' own defaults.

Ranges are checked here too, since the trainer learns of them only once the images are encoded.
"""

from pathlib import Path
from typing import Annotated

import typer

_RUN = "Training"
_DATA = "Data"

Folder = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="Images, each with its caption in a .txt file of the same name.")
]

Steps = Annotated[
    int | None, typer.Option(min=1, max=100_000, metavar="N", rich_help_panel=_RUN, help="Length in optimizer steps.")
]
Epochs = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=10_000,
        metavar="N",
        rich_help_panel=_RUN,
        help="Length as times every image is seen. (default 1, without --steps)",
    ),
]
Rank = Annotated[
    int | None, typer.Option(min=1, max=512, metavar="N", rich_help_panel=_RUN, help="Rank of the LoRA. (default 16)")
]
Alpha = Annotated[
    float | None,
    typer.Option(metavar="A", rich_help_panel=_RUN, help="The LoRA is scaled by alpha / rank. (default 16)"),
]
LearningRate = Annotated[
    float | None, typer.Option(metavar="LR", rich_help_panel=_RUN, help="Peak learning rate. (default 1e-4)")
]
BatchSize = Annotated[
    int | None, typer.Option(min=1, max=64, metavar="N", rich_help_panel=_RUN, help="Images a step. (default 1)")
]
Seed = Annotated[
    int | None, typer.Option(metavar="N", rich_help_panel=_RUN, help="The same seed gives the same steps. (default 0)")
]

HeldOut = Annotated[
    Path | None, typer.Option(metavar="FOLDER", rich_help_panel=_DATA, help="Images to measure on, not to learn.")
]
StartEarly = Annotated[
    bool,
    typer.Option(
        "--start-early",
        rich_help_panel=_DATA,
        help="Train on the images that are done while others are still being encoded. Needs --steps.",
    ),
]

Name = Annotated[str, typer.Option(metavar="NAME", help="Name of the job for people. (default the folder's)")]
User = Annotated[str, typer.Option(metavar="USER", help="User of your product that the job is for.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="The LoRA file. (default FOLDER.safetensors, here)"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the finished job as JSON.")]
