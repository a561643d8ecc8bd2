"""A clock that goes only when it is told to."""

from __future__ import annotations

from coordinator.app import utc_now_s


class Clock:
    """A coordinator's: `now_s` is the time, seconds since 1970."""

    def __init__(self, now_s: float | None = None) -> None:
        self.now_s = utc_now_s() if now_s is None else now_s

    def __call__(self) -> float:
        return self.now_s
