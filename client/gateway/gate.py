"""Who is let in while the gateway stops: nobody new; and how long those inside may take."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from protocol.errors import DrainingError

RETRY_S = 5.0


class Gate:
    """Counts the requests under way."""

    def __init__(self) -> None:
        self.is_draining = False
        self.n_inside = 0
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    @contextmanager
    def passed(self) -> Iterator[None]:
        """For one request.

        Raises:
            DrainingError: the gateway is stopping.
        """
        if self.is_draining:
            raise DrainingError("the gateway is stopping: ask again in a moment", retry_after_s=RETRY_S)
        self.n_inside += 1
        self._is_empty.clear()
        try:
            yield
        finally:
            self.n_inside -= 1
            if not self.n_inside:
                self._is_empty.set()

    async def drain(self, within_s: float) -> None:
        """Let nobody in any more and wait, so long, until those inside have gone."""
        self.is_draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._is_empty.wait()
