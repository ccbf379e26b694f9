"""Serve the gateway: `python -m gateway`."""

import socket
import sys
from argparse import ArgumentParser

import uvicorn
from fluxsmith import Client, FluxsmithError
from pydantic import ValidationError

from gateway.app import create_app
from gateway.settings import GatewaySettings, host_and_port


def main() -> None:
    """Serve until SIGTERM or SIGINT; requests under way are given `stop_s`, and their jobs go on without them."""
    settings = _settings()
    listening = _listen(settings.address)
    server = uvicorn.Server(uvicorn.Config(create_app(settings), timeout_graceful_shutdown=round(settings.stop_s)))
    sys.stderr.write(f"Serving: http://{settings.address}, described at http://{settings.address}/docs\n")
    server.run(sockets=[listening])


def _settings() -> GatewaySettings:
    parser = ArgumentParser(
        prog="python -m gateway",
        description="Serve LoRA training over HTTP, in front of encoder and trainer.",
        epilog="FLUXSMITH_ENCODER and FLUXSMITH_TRAINER say in front of which; docs/gateway.md has the other settings.",
    )
    parser.add_argument(
        "--address", metavar="HOST:PORT", help="where to serve; else FLUXSMITH_GATEWAY_ADDRESS, or 127.0.0.1:7400"
    )
    address = parser.parse_args().address
    try:
        Client().close()  # no request should have to tell that the gateway was started with a wrong address
        return GatewaySettings() if address is None else GatewaySettings(address=address)
    except FluxsmithError as error:
        sys.exit(_fault(str(error), status=2))
    except ValidationError as error:
        fault = error.errors()[0]
        field = str(fault["loc"][0])
        name = "--address" if field == "address" and address is not None else f"FLUXSMITH_GATEWAY_{field.upper()}"
        sys.exit(_fault(f"{name} is {fault['input']!r}: {fault['msg'].removeprefix('Value error, ')}.", status=2))


def _listen(address: str) -> socket.socket:
    host, port = host_and_port(address)
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        why = str(error.strerror).partition(" (")[0].lower()  # Python repeats the address in brackets
        sys.exit(_fault(f"cannot serve on {address}: {why}. Name another with --address.", status=1))


def _fault(message: str, *, status: int) -> int:
    sys.stderr.write(f"gateway: {message}\n")
    return status


if __name__ == "__main__":
    main()
