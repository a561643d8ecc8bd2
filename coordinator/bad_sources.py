"""Which workers sent wrong bytes for which file, as others say: for a while nobody is sent to them for it."""

from __future__ import annotations

from protocol.ids import FileHash, WorkerId
from protocol.worker_rest import BAD_SOURCE_S

MAX_BAD_SOURCES = 4096
"""Remembered at most; the oldest go first."""


class BadSources:
    """Pairs of worker and file, each for `BAD_SOURCE_S`. Times are arguments: this knows no clock."""

    def __init__(self, max_sources: int = MAX_BAD_SOURCES) -> None:
        self._max_sources = max_sources
        self._until_s: dict[tuple[WorkerId, FileHash], float] = {}

    def __len__(self) -> int:
        return len(self._until_s)

    def add(self, worker_id: WorkerId, file: FileHash, now_s: float) -> bool:
        """Note it; whether that is news (what is noted already isn't noted for longer)."""
        if self.is_bad(worker_id, file, now_s):
            return False
        self._until_s[worker_id, file] = now_s + BAD_SOURCE_S
        while len(self._until_s) > self._max_sources:
            del self._until_s[next(iter(self._until_s))]
        return True

    def is_bad(self, worker_id: WorkerId, file: FileHash, now_s: float) -> bool:
        """Whether the worker isn't to be named for the file."""
        until_s = self._until_s.get((worker_id, file))
        if until_s is not None and until_s <= now_s:
            del self._until_s[worker_id, file]
            return False
        return until_s is not None
