"""Where sessions wait for key-value memory: the shell around `worker.cache_plan`. Lives on the event loop."""

from __future__ import annotations

import asyncio

from protocol.errors import BrigadeError, OverloadedError
from protocol.ids import SessionId
from worker.cache_plan import CachePlan, Reservation, exchange, release, reserve, resize, shrink


class MemoryGate:
    """Grants reservations as `worker.cache_plan` decides; whoever doesn't fit waits, with a deadline."""

    def __init__(self, *, budget_bytes: int, max_waiting: int) -> None:
        self.plan = CachePlan(budget_bytes=budget_bytes, max_waiting=max_waiting)
        self._waiters: dict[SessionId, asyncio.Future[None]] = {}

    def request(self, reservation: Reservation) -> None:
        """Grant or queue; then `wait`. Whatever comes of that, `release` in the end.

        Raises:
            ConflictError: the session has a reservation.
            OverloadedError: it can never fit, or too many wait.
        """
        self._set(reserve(self.plan, reservation))

    async def wait(self, reservation: Reservation, deadline_s: float) -> None:
        """Return when the reservation is granted, which may be at once.

        Raises:
            OverloadedError: not within `deadline_s` seconds; the message has the numbers.
            BrigadeError: what `fail` was called with.
        """
        if reservation.session_id in self.plan.granted:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[reservation.session_id] = waiter
        try:
            async with asyncio.timeout(deadline_s):
                await waiter
        except TimeoutError as exc:
            raise OverloadedError(
                f"waited {deadline_s:g} s for {reservation.n_bytes} bytes of key-value cache; "
                f"{self.plan.free_bytes} of {self.plan.budget_bytes} are free: try again later"
            ) from exc
        finally:
            del self._waiters[reservation.session_id]

    def release(self, session_id: SessionId) -> None:
        """Give back what the session has or waits for. Idempotent."""
        self._set(release(self.plan, session_id))

    def shrink(self, session_id: SessionId, n_bytes: int) -> None:
        """Leave a session that many of the bytes that it was granted."""
        self._set(shrink(self.plan, session_id, n_bytes))

    def exchange(self, old: SessionId, reservation: Reservation) -> None:
        """Grant a reservation in place of what another session was granted; nothing may be missing for it."""
        self.plan = exchange(self.plan, old, reservation)

    def resize(self, budget_bytes: int) -> None:
        """Set the budget; what is granted stays granted."""
        self._set(resize(self.plan, budget_bytes))

    def fail(self, session_id: SessionId, error: BrigadeError) -> bool:
        """End a session's wait with `error`; False if it doesn't wait."""
        waiter = self._waiters.get(session_id)
        if waiter is None:
            return False
        if not waiter.done():
            waiter.set_exception(error)
        return True

    def fail_all(self, error: BrigadeError) -> None:
        """End every wait with `error`."""
        for session_id in self._waiters:
            self.fail(session_id, error)

    def _set(self, plan: CachePlan) -> None:
        self.plan = plan
        for session_id, waiter in self._waiters.items():
            if session_id in plan.granted and not waiter.done():
                waiter.set_result(None)
