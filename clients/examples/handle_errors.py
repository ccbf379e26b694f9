"""What goes wrong is told with a reason for programs and a remedy for people, most of it before anything is sent."""

from collections.abc import Callable
from pathlib import Path

import fluxsmith
from fluxsmith import errors

DRAWINGS = Path(__file__).resolve().parents[2] / "assets/demo/train"


def tell(what: str, action: Callable[[], object]) -> None:
    """Do it, and print what the error says: what is wrong, and what to do."""
    try:
        action()
    except errors.FluxsmithError as error:
        print(f"{what}: {type(error).__name__}, {error.reason}: {error}")
        if isinstance(error, errors.InvalidRequest):
            print("  fields:", ", ".join(violation.field for violation in error.violations) or "none")


with fluxsmith.Client() as client:
    tell("two faults", lambda: client.validate(fluxsmith.TrainConfig(rank=0, learning_rate=-1.0)))
    tell("no folder", lambda: client.datasets.create_from_folder(DRAWINGS / "nothing"))
    tell("no job", lambda: client.job("job-that-never-was"))
    empty = client.datasets.create(name="empty")
    tell("nothing encoded", lambda: client.train(empty, steps=10))
with fluxsmith.Client(trainer="127.0.0.1:1") as nowhere:
    tell("nobody there", lambda: nowhere.job("any"))
