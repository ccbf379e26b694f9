# Made by scripts/make_sync.py from clients/fluxsmith/_async/_fetch.py: change that file instead.
"""Fetches a file of the store through breaks and outages: each try has a fresh address and asks only for the rest."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fluxsmith._download import download, part_of
from fluxsmith._outage import Outage
from fluxsmith._runtime import sleep, stoppable
from fluxsmith.errors import Unavailable
from fluxsmith.policies import Deadlines, RetryPolicy


@dataclass(frozen=True, kw_only=True)
class Located:
    """A file of the store and an address from which it can be fetched for a while."""

    url: str
    size_bytes: int
    content_digest: str


def fetch(locate: Callable[[], Located], target: Path, *, deadlines: Deadlines, retry: RetryPolicy) -> None:
    """Write the file that `locate` tells of to `target`, as `download` does."""
    outage = Outage(retry)
    while True:
        file = locate()
        part = part_of(target, file.content_digest)
        had_bytes = _size_of(part)
        try:
            stoppable(
                download,
                file.url,
                target,
                size_bytes=file.size_bytes,
                digest=file.content_digest,
                stall_s=deadlines.stall_s,
            )
            return
        except Unavailable as error:
            if _size_of(part) > had_bytes:
                outage.recovered()
            sleep(outage.next_delay_s(error))


def _size_of(part: Path) -> int:
    try:
        return part.stat().st_size
    except (OSError, ValueError):  # not there, or no name for a file
        return 0
