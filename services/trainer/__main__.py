"""Run the trainer: `python -m services.trainer`. Its settings are environment variables (`settings.py`).

This process serves RPCs and keeps workers alive; it never touches CUDA itself.
"""

from __future__ import annotations

import logging
import sys

from services.common.errors import ServiceError
from services.common.logs import set_up_logging
from services.common.settings import ServiceSettings, StoreSettings, read_settings
from services.trainer import app
from services.trainer.settings import TrainerSettings

log = logging.getLogger("services.trainer")


def main() -> int:
    """Serve until SIGTERM or SIGINT."""
    try:
        service, settings = read_settings(ServiceSettings), read_settings(TrainerSettings)
        store_settings = read_settings(StoreSettings)
    except ServiceError as error:
        print(f"error: {error.log_line}", file=sys.stderr)  # noqa: T201 - the log is not set up yet
        return 1
    set_up_logging(service.log_level)
    try:
        app.run(service, settings, store_settings, own_process=True)
    except ServiceError as error:
        log.error(error.log_line)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
