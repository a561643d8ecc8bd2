"""The time that quotas go by: the wall clock as it was at the start, and from then on one that never steps."""

from __future__ import annotations

import time
from collections.abc import Callable


class SteadyClock:
    """Seconds since 1970, UTC, as far as the wall clock was right when this was made.

    A wall clock that is set gives nobody tokens and takes none while the program runs. Over a restart it may: a
    clock that went back gives nothing, one that went forward at most what a full rate is.
    """

    def __init__(self, wall: Callable[[], float], steady: Callable[[], float] = time.monotonic) -> None:
        self._steady = steady
        self._offset_s = wall() - steady()

    def __call__(self) -> float:
        """The time now."""
        return self._offset_s + self._steady()
