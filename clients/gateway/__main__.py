"""Serve the gateway: `python -m gateway`."""

import uvicorn

from gateway.app import create_app
from gateway.settings import GatewaySettings


def main() -> None:
    """Serve until SIGTERM or SIGINT; requests under way are given `stop_s`, and their jobs go on without them."""
    settings = GatewaySettings()
    host, _, port = settings.address.rpartition(":")
    uvicorn.run(
        create_app(settings), host=host.strip("[]"), port=int(port), timeout_graceful_shutdown=round(settings.stop_s)
    )


if __name__ == "__main__":
    main()
