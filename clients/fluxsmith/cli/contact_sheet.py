"""`fluxsmith contact-sheet`: pictures of what training will see, before it does."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer
from fluxsmith_text import on_one_line

from fluxsmith._folder import folder_name, read_folder, skipping, warn_of_left_out
from fluxsmith.cli.data_options import with_data_options
from fluxsmith.cli.display import display_for
from fluxsmith.cli.output import check_target, default_target, output_file, with_suffix
from fluxsmith.cli.session import Session
from fluxsmith.cli.text import size_text
from fluxsmith.client import Client
from fluxsmith.data import Dataset
from fluxsmith.encoding import EncodingOptions
from fluxsmith.errors import FluxsmithError, NotFound

Source = Annotated[
    str,
    typer.Argument(
        metavar="FOLDER_OR_DATASET",
        help="A folder as `fluxsmith train` takes it, or a dataset as `fluxsmith datasets` lists it.",
    ),
]
PerPage = Annotated[int | None, typer.Option(min=1, max=100, metavar="N", help="Images a page. (default 24)")]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        parser=output_file,
        metavar="FILE",
        help="The PNG file; further pages get -2, -3 before the suffix. (default NAME-contact-sheet.png, here)",
    ),
]


@with_data_options
def contact_sheet(
    context: typer.Context,
    source: Source,
    *,
    data: EncodingOptions,
    per_page: PerPage = None,
    output: Output = None,
) -> None:
    """Draw what training will see: every crop, its size, its captions, and what is wrong with it.

    A folder is uploaded for this alone and removed from the service again.
    A dataset is drawn as it was encoded last, unless options are given.
    """
    session: Session = context.obj
    folder = Path(source) if _means_folder(source) else None
    named = folder_name(folder) if folder else source
    target = with_suffix(output, ".png") if output else default_target(named, "-contact-sheet.png")
    check_target(target)
    options = data if data != EncodingOptions() else None
    with session.client() as client:
        if folder:
            with _uploaded(client, folder, data, session) as dataset:
                written = client.datasets.contact_sheet(dataset, target, options=options, samples_per_page=per_page)
        else:
            try:
                written = client.datasets.contact_sheet(source, target, options=options, samples_per_page=per_page)
            except NotFound as error:
                message = f"{source} is neither a folder here nor a dataset of this tenant."
                raise NotFound(message, reason=error.reason, remedy=error.remedy) from error
    for path in written:
        typer.echo(on_one_line(f"{path} ({size_text(path.stat().st_size)})"))


@contextmanager
def _uploaded(client: Client, folder: Path, data: EncodingOptions, session: Session) -> Iterator[Dataset]:
    """Hold a dataset of the folder's images, not encoded, which is deleted in the end whatever happens."""
    images = read_folder(folder, **skipping(data))
    warn_of_left_out(images)
    dataset = client.datasets.create(name=folder_name(folder))
    try:
        with display_for(session.console) as display:
            client.datasets.upload(dataset, images, on_progress=display.dataset(folder_name(folder)))
        yield dataset
    finally:
        with suppress(FluxsmithError):
            client.datasets.delete(dataset)


def _means_folder(source: str) -> bool:
    """Whether this is a path rather than the identifier of a dataset."""
    return Path(source).exists() or source in {".", ".."} or os.sep in source
