"""Run the encoder: `python -m services.encoder`. Its settings are environment variables (`settings.py`)."""

from __future__ import annotations

import logging
import sys

from services.common.errors import ServiceError
from services.common.logs import hide_progress_bars, set_up_logging
from services.common.settings import ServiceSettings, StoreSettings, read_settings
from services.encoder import app
from services.encoder.settings import EncoderSettings

log = logging.getLogger("services.encoder")


def main() -> int:
    """Serve until SIGTERM or SIGINT."""
    try:
        service, settings = read_settings(ServiceSettings), read_settings(EncoderSettings)
        store_settings = read_settings(StoreSettings)
    except ServiceError as error:
        print(f"error: {error.log_line}", file=sys.stderr)  # noqa: T201 - the log is not set up yet
        return 1
    set_up_logging(service.log_level)
    hide_progress_bars()
    try:
        app.run(service, settings, store_settings)
    except ServiceError as error:
        log.error(error.log_line)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
