"""Until when a generation may take, and what is said when that is over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from protocol.errors import DeadlineExceededError


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline:
    """Until when a generation may take, on the loop's clock."""

    at_s: float
    timeout_s: float

    @asynccontextmanager
    async def applied(self) -> AsyncIterator[None]:
        """Limit a wait.

        Raises:
            DeadlineExceededError: it is over.
        """
        try:
            async with asyncio.timeout_at(self.at_s):
                yield
        except TimeoutError as exc:
            raise self.error() from exc

    def error(self, standing: str = "") -> DeadlineExceededError:
        """That it is over, and how far the generation was."""
        message = (
            f"the generation took longer than its {self.timeout_s:g} s: give a longer --timeout or ask for less"
        )
        return DeadlineExceededError(f"{message}; {standing}" if standing else message)
