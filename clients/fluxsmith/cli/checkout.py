"""Where this project's source is on this machine: the services run from there, not from the installed client."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import fluxsmith
from fluxsmith.errors import FailedPrecondition

_MARK = Path("services/stack.py")


def checkout() -> Path | None:
    """Return the folder of the source: the current one or one above it, else the one that the client runs from."""
    here = Path.cwd()
    package = Path(fluxsmith.__file__).resolve()
    return next((folder for folder in (here, *here.parents, *package.parents) if (folder / _MARK).is_file()), None)


def require_checkout(otherwise: str = "name services that run elsewhere with --encoder and --trainer") -> Path:
    """Return the folder of the source; raises `FailedPrecondition` that says how to get one, or what else to do."""
    if source := checkout():
        return source
    raise FailedPrecondition(
        "the services' source is not on this machine: neither this folder nor one above it is a checkout of fluxsmith.",
        reason="NO_CHECKOUT",
        remedy=f"Clone the repository, run `make setup` in it and try again there; or {otherwise}.",
    )


def python_of(source: Path) -> Path:
    """Return the Python that the services run with: this one if it can, else that of the checkout.

    Raises `FailedPrecondition` when neither has what they need.
    """
    if find_spec("torch"):
        return Path(sys.executable)
    python = source / ".venv" / "bin" / "python"
    if python.is_file():
        return python
    raise FailedPrecondition(
        f"the services in {source} are not set up: {python} does not exist, and this Python has no torch.",
        reason="NOT_SET_UP",
        remedy=f"Run `make setup` in {source}.",
    )


def environment_of(source: Path) -> dict[str, str]:
    """Return the environment in which Python finds the services."""
    paths = [str(source / "clients"), str(source), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
