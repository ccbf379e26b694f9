"""One line a log record on standard error, for people and for log collectors."""

from __future__ import annotations

import logging
import os
from typing import Any

from fluxsmith_text import on_one_line

# On import, since these libraries speak up while they are imported themselves, of parts that are optional.
for _name in ("bitsandbytes", "urllib3", "httpx"):
    logging.getLogger(_name).setLevel(logging.ERROR)
logging.getLogger("alembic").setLevel(logging.WARNING)  # ten lines at every start
for _name in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):
    os.environ.setdefault(_name, "error")


def set_up_logging(level: str) -> None:
    """Write records of `level` and above; of the model libraries, errors only."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=level, handlers=[handler])


class LineFormatter(logging.Formatter):
    r"""A record on one line, control characters written as `\x1b` or `\n`; below it its traceback, indented.

    So nothing that a caller sends reaches the terminal as an order, or looks like a record of its own.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S%z")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        """The line."""
        return on_one_line(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's own name
        """The traceback."""
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802 - logging's own name
        """The stack of who logged, where that was asked for."""
        return _indented(super().formatStack(stack_info))


def _indented(text: str) -> str:
    return "\n".join(f"  {on_one_line(line)}" for line in text.split("\n"))


def hide_progress_bars() -> None:
    """For processes that load models; importing the libraries costs others 280 MB for nothing."""
    import diffusers.utils.logging  # noqa: PLC0415 - see above
    import transformers.utils.logging  # noqa: PLC0415

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
