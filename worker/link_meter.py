"""What one connection's link is like: its round trip, what went over it, how fast. From pings; pure.

A big frame is followed by a ping, whose answer comes once all of the frame has arrived: what that takes beyond a
round trip is the frame's own time. Only the first after a pause counts, since nothing else is on its way then.
"""

from __future__ import annotations

from collections import deque

BIG_FRAME_BYTES = 64 * 1024
"""What is smaller says more about the round trip than about the bandwidth."""
PAUSE_S = 1.0
N_SPEEDS = 8

_ROUND_TRIP, _TRANSFER = b"round trip", b"transfer"
"""What our own pings carry; aiohttp's carry nothing."""
_NEW_WEIGHT = 0.2
"""Of a new round trip in the average: the last ten or so count."""
_LEAST_TRANSFER_S = 1e-4
"""A shorter time is a matter of chance."""


class LinkMeter:
    """Figures of one connection. Times are the loop's."""

    def __init__(self) -> None:
        self.round_trip_s: float | None = None
        """Smoothed; None until measured."""
        self.n_bytes_sent = 0
        self._pinged_at_s: float | None = None
        self._transfer: tuple[int, float] | None = None
        """The frame whose ping is on its way: bytes, and when it began."""
        self._last_big_s = float("-inf")
        self._speeds: deque[float] = deque(maxlen=N_SPEEDS)

    @property
    def bytes_per_s(self) -> float | None:
        """The fastest of the latest big frames, since others were held up by programs; None until measured."""
        return max(self._speeds, default=None)

    @property
    def is_pinging(self) -> bool:
        """Whether a round trip is being measured."""
        return self._pinged_at_s is not None

    def round_trip_begins(self, now_s: float) -> bytes:
        """What to send as a ping now."""
        self._pinged_at_s = now_s
        return _ROUND_TRIP

    def sent(self, n_bytes: int, began_s: float, now_s: float) -> bytes | None:
        """A frame was written; what to send as a ping right behind it, if anything."""
        self.n_bytes_sent += n_bytes
        if n_bytes < BIG_FRAME_BYTES:
            return None
        had_pause = began_s - self._last_big_s > PAUSE_S
        self._last_big_s = now_s
        if not had_pause or self._transfer is not None:
            return None
        self._transfer = (n_bytes, began_s)
        return _TRANSFER

    def answered(self, data: bytes, now_s: float) -> None:
        """A pong came; of any ping."""
        if data == _ROUND_TRIP and self._pinged_at_s is not None:
            self.round_trip_s = _averaged(self.round_trip_s, now_s - self._pinged_at_s)
            self._pinged_at_s = None
        elif data == _TRANSFER and self._transfer is not None:
            (n_bytes, began_s), self._transfer = self._transfer, None
            if self.round_trip_s is not None:
                seconds = max(_LEAST_TRANSFER_S, now_s - began_s - self.round_trip_s)
                self._speeds.append(n_bytes / seconds)


def _averaged(before: float | None, new: float) -> float:
    return new if before is None else before + _NEW_WEIGHT * (new - before)
