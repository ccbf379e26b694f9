"""One line a log record on standard error, for people and for log collectors."""

from __future__ import annotations

import logging

import diffusers.utils.logging
import transformers.utils.logging

# On import, since bitsandbytes warns while it is imported itself, of kernels that are optional.
for _name in ("bitsandbytes", "urllib3", "httpx"):
    logging.getLogger(_name).setLevel(logging.ERROR)
logging.getLogger("alembic").setLevel(logging.WARNING)  # ten lines at every start


def set_up_logging(level: str) -> None:
    """Write records of `level` and above; of the model libraries, errors only."""
    logging.basicConfig(
        level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%Y-%m-%dT%H:%M:%S%z"
    )
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
