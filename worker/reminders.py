"""Lines for people about what doesn't work: a new one at once, the same again after a while."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

AGAIN_S = 60.0
_MAX_LINES = 64
"""That are remembered: what goes wrong goes wrong in a few ways."""


class Reminders:
    """Tells what it is given, as often as anybody wants to read it."""

    def __init__(self, tell: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._tell = tell
        self._clock = clock
        self._told_s: OrderedDict[str, float] = OrderedDict()

    def say(self, line: str) -> None:
        """Tell it, unless it was told within `AGAIN_S`."""
        now_s = self._clock()
        if now_s < self._told_s.get(line, float("-inf")) + AGAIN_S:
            return
        self._told_s[line] = now_s
        self._told_s.move_to_end(line)
        if len(self._told_s) > _MAX_LINES:
            self._told_s.popitem(last=False)
        self._tell(line)

    def forget(self) -> None:
        """All is well: what goes wrong next is news."""
        self._told_s.clear()
