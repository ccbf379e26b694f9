"""Where the command `fluxsmith` begins: outside of the package, so that Ctrl-C while that is imported ends quietly."""

import os
import signal
import sys


def main() -> None:
    """Run the command with the arguments of the process and exit with its code."""
    default = signal.getsignal(signal.SIGINT)
    if default is signal.default_int_handler:  # not where whoever started this wants Ctrl-C ignored
        # Nothing is under way yet. An exception would come out of whatever was being imported, as a traceback.
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from fluxsmith.cli.app import run  # noqa: PLC0415 - this is what takes the time

    signal.signal(signal.SIGINT, default)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # so that the terminal gets its cursor back
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(run(sys.argv[1:]))
