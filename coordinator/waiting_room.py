"""Where requests wait for something to change: so many in all and so many of one key, each until its deadline."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from protocol.errors import DrainingError, OverloadedError
from protocol.ids import KeyId
from protocol.waits import until_set

MAX_WAITING = 1000
MAX_WAITING_PER_KEY = 50
RETRY_FULL_S = 5.0
RETRY_STOPPING_S = 1.0
LOOK_S = 1.0
"""So often those who wait look around anyway: whether the caller is still there, and at what time alone changes."""


class WaitingRoom:
    """Counts those who wait, and sends them away when the program stops."""

    def __init__(self) -> None:
        self._n_of_key: Counter[KeyId] = Counter()
        self._stopping = asyncio.Event()

    def __len__(self) -> int:
        return self._n_of_key.total()

    @contextmanager
    def place(self, key_id: KeyId) -> Iterator[None]:
        """A place for one request.

        Raises:
            OverloadedError: there is none left.
        """
        if len(self) >= MAX_WAITING:
            raise OverloadedError(
                f"{MAX_WAITING} requests wait for a route already; ask again", retry_after_s=RETRY_FULL_S
            )
        if self._n_of_key[key_id] >= MAX_WAITING_PER_KEY:
            raise OverloadedError(
                f"{MAX_WAITING_PER_KEY} requests of this key wait for a route already; ask again",
                retry_after_s=RETRY_FULL_S,
            )
        self._n_of_key[key_id] += 1
        try:
            yield
        finally:
            self._n_of_key[key_id] -= 1
            if not self._n_of_key[key_id]:
                del self._n_of_key[key_id]

    async def change(self, changed: asyncio.Event, longest_s: float, *, is_gone: Callable[[], bool]) -> None:
        """Wait until `changed` is set, for `longest_s` or `LOOK_S`, whichever is over first.

        Raises:
            ConnectionError: the caller hung up: nobody is there to be answered.
            DrainingError: the program stops.
        """
        await until_set(changed, self._stopping, timeout_s=min(max(longest_s, 0.0), LOOK_S))
        if self._stopping.is_set():
            raise DrainingError("the coordinator stops; ask again", retry_after_s=RETRY_STOPPING_S)
        if is_gone():
            raise ConnectionError("the caller hung up")

    def stop(self) -> None:
        """Send away all who wait, and whoever comes after."""
        self._stopping.set()
