"""Where requests wait for something to change: so many in all and so many of one key, each until its deadline.

A key may have as many waiting as there are places left, so however many requests some keys send, others find
one. When something has changed, each key's first request looks before any key's second, by the weight of its class.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from protocol.errors import DrainingError, OverloadedError
from protocol.ids import KeyId
from protocol.key_limits import PRIORITY_WEIGHTS, Priority
from protocol.waits import until_set

MAX_WAITING = 1000
MAX_WAITING_PER_KEY = 50
RETRY_FULL_S = 5.0
RETRY_STOPPING_S = 1.0
LOOK_S = 1.0
"""So often those who wait look around anyway: whether the caller is still there, and at what time alone changes."""


@dataclass(frozen=True, slots=True)
class Asker:
    """Whose request it is."""

    key_id: KeyId
    priority: Priority = "normal"


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where one request waits."""

    asker: Asker


class WaitingRoom:
    """Knows who waits, and sends them away when the program stops."""

    def __init__(self) -> None:
        self._places: dict[KeyId, list[Place]] = {}
        self._stopping = asyncio.Event()

    def __len__(self) -> int:
        return sum(map(len, self._places.values()))

    @contextmanager
    def place(self, asker: Asker) -> Iterator[Place]:
        """A place for one request.

        Raises:
            OverloadedError: there is none left.
        """
        n_left = MAX_WAITING - len(self)
        if n_left <= 0:
            raise OverloadedError(
                f"{MAX_WAITING} requests wait for a route already; ask again", retry_after_s=RETRY_FULL_S
            )
        n_own = len(self._places.get(asker.key_id, ()))
        if n_own >= min(MAX_WAITING_PER_KEY, n_left):
            raise OverloadedError(
                f"{n_own} requests of this key wait for a route already, and {n_left} places are left for others; "
                "ask again",
                retry_after_s=RETRY_FULL_S,
            )
        place = Place(asker)
        self._places.setdefault(asker.key_id, []).append(place)
        try:
            yield place
        finally:
            self._places[asker.key_id].remove(place)
            if not self._places[asker.key_id]:
                del self._places[asker.key_id]

    async def change(
        self, place: Place, changed: asyncio.Event, longest_s: float, *, is_gone: Callable[[], bool]
    ) -> None:
        """Wait for `changed`, and then for this place's turn; for `longest_s` or `LOOK_S`, whichever is shorter.

        Raises:
            ConnectionError: the caller hung up: nobody is there to be answered.
            DrainingError: the program stops.
        """
        await until_set(changed, self._stopping, timeout_s=min(max(longest_s, 0.0), LOOK_S))
        for _ in range(self._n_before(place)):  # all who wait wake at once; one turn of the loop is one look
            await asyncio.sleep(0)
        if self._stopping.is_set():
            raise DrainingError("the coordinator stops; ask again", retry_after_s=RETRY_STOPPING_S)
        if is_gone():
            raise ConnectionError("the caller hung up")

    def stop(self) -> None:
        """Send away all who wait, and whoever comes after."""
        self._stopping.set()

    def _n_before(self, place: Place) -> int:
        """How many looks of a key of class `normal` come before this one."""
        n_own = self._places[place.asker.key_id].index(place) + 1
        return int(n_own / PRIORITY_WEIGHTS[place.asker.priority])
