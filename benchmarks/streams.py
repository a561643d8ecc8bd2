"""A generation in a task of its own: what came of it and when, for whoever breaks things meanwhile."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from client.api import TokenStream
from client.results import Generation
from protocol.errors import BrigadeError
from protocol.ids import WorkerId


class WatchedStream:
    """Reads one stream to its end. Its task belongs to `tasks`; an error of the generation doesn't leave it."""

    def __init__(self, stream: TokenStream, tasks: asyncio.TaskGroup) -> None:
        self.token_ids: list[int] = []
        self.text = ""
        self.came_at_s: list[float] = []
        """Of each token, on the loop's clock."""
        self.failovers: list[int] = []
        """Before each token."""
        self.error: BrigadeError | None = None
        """Why the generation ended before its time."""
        self.is_over = False
        self.began_s = asyncio.get_running_loop().time()
        self._stream = stream
        self._changed = asyncio.Event()
        self._task = tasks.create_task(self._read(), name="watched stream")

    @property
    def result(self) -> Generation:
        """As far as it came."""
        return self._stream.result

    @property
    def worker_ids(self) -> tuple[WorkerId, ...]:
        """Who works on it now, in order; nobody before there is a route."""
        return tuple(stage.worker_id for stage in self.result.route)

    async def reached(self, n_tokens: int) -> None:
        """Wait until so many tokens have come. The caller has the deadline.

        Raises:
            BrigadeError: the generation failed before.
            ValueError: it was over before.
        """
        while len(self.token_ids) < n_tokens:
            if self.is_over:
                if self.error is not None:
                    raise self.error
                raise ValueError(f"the generation was over after {len(self.token_ids)} of {n_tokens} tokens")
            self._changed.clear()
            await self._changed.wait()

    async def ended(self) -> None:
        """Wait for the end, a good one or a bad one. The caller has the deadline."""
        await asyncio.wait([self._task])

    async def moved_on(self, at_s: float) -> None:
        """Wait until a token has come after that time, or the end. The caller has the deadline."""
        while not self.is_over and (not self.came_at_s or self.came_at_s[-1] <= at_s):
            self._changed.clear()
            await self._changed.wait()

    async def finished(self) -> Generation:
        """Wait for the end. The caller has the deadline.

        Raises:
            BrigadeError: the generation failed.
        """
        await self.ended()
        if self.error is not None:
            raise self.error
        return self.result

    def longest_gap_s(self, since_s: float = 0.0, until_s: float = float("inf")) -> float:
        """The longest wait for a token, the first too, that ended after `since_s` and began before `until_s`."""
        waits = pairwise((self.began_s, *self.came_at_s))
        return max((after - before for before, after in waits if after > since_s and before < until_s), default=0.0)

    def first_after_failover_s(self, since_s: float) -> float:
        """When the first token came that another route than the one of `since_s` brought; infinity if none did."""
        came = tuple(zip(self.came_at_s, self.failovers, strict=True))
        n_before = max((n for at_s, n in came if at_s <= since_s), default=0)
        return next((at_s for at_s, n in came if at_s > since_s and n > n_before), float("inf"))

    async def _read(self) -> None:
        now_s = asyncio.get_running_loop().time
        try:
            async with self._stream as pieces:
                async for piece in pieces:
                    self.token_ids.append(piece.token_id)
                    self.text += piece.text
                    self.came_at_s.append(now_s())
                    self.failovers.append(self.result.failovers)
                    self._changed.set()
        except BrigadeError as exc:
            self.error = exc
        finally:
            self.is_over = True
            self._changed.set()
