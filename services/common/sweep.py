"""How the collection of unreferenced objects and those who begin to use objects keep out of each other's way.

A sweep of a tenant writes its marker, and only then looks what is in use. Who begins to use objects first notes that
use (an encoding: `encoding.json`; a job: its hold), and only then looks for the marker. So at least one of the two sees
the other: a sweep leaves alone what it finds in use, and users wait for its end before they rely on an object.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from pydantic import BaseModel, ConfigDict

from services.common.cache import read_record
from services.common.errors import Unavailable
from services.common.object_store import ObjectDamaged, ObjectMissing, ObjectStore

BEAT = timedelta(seconds=10)  # a sweep at work renews its marker this often
ABANDONED = timedelta(seconds=60)  # a marker this old is of a sweep that was killed
PATIENCE_S = 30.0
POLL_S = 0.2


class SweepMarker(BaseModel):
    """A sweep under way, with its last sign of life."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    token: str
    beat: datetime

    @property
    def abandoned(self) -> bool:
        """Whether the sweep that wrote it can no longer be at work."""
        return datetime.now(UTC) - self.beat > ABANDONED


def marker_key(tenant: str) -> str:
    """Where the marker of a tenant's sweep lies."""
    return f"{tenant}/sweep.json"


def read_marker(store: ObjectStore, tenant: str) -> SweepMarker | None:
    """The sweep under way, or None."""
    try:
        marker = read_record(store, marker_key(tenant), SweepMarker)
    except (ObjectMissing, ObjectDamaged):
        return None
    return None if marker.abandoned else marker


def wait_for_sweep(store: ObjectStore, tenant: str, *, patience_s: float = PATIENCE_S) -> None:
    """Return once no sweep is under way; raises `Unavailable` when one lasts longer than `patience_s`.

    Call it after noting what is used, and before looking whether it is there.
    """
    deadline_s = time.monotonic() + patience_s
    while read_marker(store, tenant):
        if time.monotonic() > deadline_s:
            raise Unavailable(
                "unused objects of this tenant are being collected",
                reason="SWEEP_UNDER_WAY",
                remedy="Try again in a minute.",
                retry_after_s=30.0,
            )
        time.sleep(POLL_S)
