"""A lock for each of any number of names, kept only while somebody holds it or waits for it."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class _Shared:
    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0


class NamedLocks:
    """Locks by name. Safe to use from several threads."""

    def __init__(self) -> None:
        self._shared: dict[Hashable, _Shared] = {}
        self._of_shared = threading.Lock()

    def __len__(self) -> int:
        """Names that are held or waited for."""
        return len(self._shared)

    @contextmanager
    def held(self, *name: Hashable) -> Iterator[None]:
        """Hold the lock of this name; waits for it."""
        with self._of_shared:
            shared = self._shared.setdefault(name, _Shared())
            shared.users += 1
        try:
            with shared.lock:
                yield
        finally:
            with self._of_shared:
                shared.users -= 1
                if not shared.users:
                    del self._shared[name]
