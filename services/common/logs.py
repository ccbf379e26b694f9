"""One line a log record on standard error, for people and for log collectors."""

from __future__ import annotations

import logging
import os

# On import, since these libraries speak up while they are imported themselves, of parts that are optional.
for _name in ("bitsandbytes", "urllib3", "httpx"):
    logging.getLogger(_name).setLevel(logging.ERROR)
logging.getLogger("alembic").setLevel(logging.WARNING)  # ten lines at every start
for _name in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):
    os.environ.setdefault(_name, "error")


def set_up_logging(level: str) -> None:
    """Write records of `level` and above; of the model libraries, errors only."""
    logging.basicConfig(
        level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%Y-%m-%dT%H:%M:%S%z"
    )


def hide_progress_bars() -> None:
    """For processes that load models; importing the libraries costs others 280 MB for nothing."""
    import diffusers.utils.logging  # noqa: PLC0415 - see above
    import transformers.utils.logging  # noqa: PLC0415

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
