"""The caches of sessions that are over, kept for those that go on from them: the shell around `worker.parking`.

What they hold is granted still (`worker.memory_gate`), under their own ids; it is given back the moment somebody
needs it, and what they had reserved beyond it at once. Lives on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial

from protocol.errors import CancelledByClientError
from worker.cache_plan import Reservation
from worker.engine_core import EngineCore
from worker.engine_link import EngineLink
from worker.history import History
from worker.memory_gate import MemoryGate
from worker.parking import PARK_S, Parked, ParkingLot, TakenOver
from worker.steps import SessionSpec, SpanKey
from worker.text_lengths import TextLengths


class KeptSessions:
    """What is parked. The engine's thread does what it is asked in order, so what goes counts as gone at once."""

    def __init__(self, memory: MemoryGate, link: EngineLink) -> None:
        self.lot = ParkingLot()
        self._memory = memory
        self._link = link

    def keep(self, spec: SessionSpec, history: History) -> bool:
        """Park a session that has its memory; False if there is nothing to keep."""
        n_kept, session_id = min(history.n_settled, spec.n_positions), spec.session_id
        if not n_kept:
            return False
        n_bytes = self._memory.plan.granted[session_id] // spec.n_positions * n_kept
        until_s = asyncio.get_running_loop().time() + PARK_S
        self.lot = self.lot.with_last(Parked(spec=spec, n_bytes=n_bytes, until_s=until_s, history=history))
        error = CancelledByClientError("the session is over")
        self._link.post(lambda core: core.park(session_id, n_kept), drops_session=session_id, drop_error=error)
        self._memory.shrink(session_id, n_bytes)
        self._drop(self.lot.surplus())
        self.make_room()
        return True

    def left_for(self, spec: SessionSpec, lengths: TextLengths) -> Parked | None:
        """What the session may begin with; from now on that is the last to make room for others."""
        left = self.lot.left_for(spec, lengths)
        if left is not None:
            self.lot = self.lot.with_last(left)
        return left

    def make_room(self) -> None:
        """Free as much as sessions wait for, or as the budget was lowered by."""
        self._drop(self.lot.in_the_way(self._memory.plan.missing_bytes))

    def forget_expired(self, now_s: float) -> None:
        """Free what was kept for too long; `now_s` is the loop's clock."""
        self._drop(self.lot.expired(now_s))

    def forget_span(self, key: SpanKey) -> None:
        """Free what can't outlive the span."""
        self._drop(self.lot.of_span(key))

    def hand_over(self, left: Parked, spec: SessionSpec, reservation: Reservation) -> bool:
        """Give a new session the memory of a parked one, and what it needs beyond that; then `moved`.

        False if others could use what is parked, or there isn't memory enough at once.
        """
        session_id = left.spec.session_id
        others = self.lot.without(session_id)
        n_missing = self._memory.plan.missing_bytes_for(reservation, session_id)
        if n_missing is None or n_missing > others.n_bytes or not left.is_replaced_by(spec):
            return False
        self._drop(others.in_the_way(n_missing))
        self.lot = self.lot.without(session_id)
        self._memory.exchange(session_id, reservation)
        return True

    async def moved(self, left: Parked, spec: SessionSpec) -> TakenOver:
        """Begin a session with the very cache of another.

        Raises:
            BrigadeError: what the engine says.
        """
        n_cached: int = await self._link.post(lambda core: core.adopt(spec, left.spec.session_id))
        return TakenOver(n_cached=min(n_cached, left.n_shared(spec)), history=left.history)

    async def copied(self, left: Parked, spec: SessionSpec) -> TakenOver:
        """Begin a session that has memory of its own with a copy of what it shares; the other stays, if of use.

        Raises:
            OverloadedError: the device has no memory for it.
            BrigadeError: what the engine says.
        """
        n_shared = left.n_shared(spec)
        history = left.history.beginning(n_shared)

        def copy(core: EngineCore) -> int:
            n_cached = core.open_copy(spec, left.spec.session_id, n_shared)
            history.settle()
            return n_cached

        copying = self._link.post(copy)
        if left.is_replaced_by(spec):
            self._drop((left,))
        n_cached: int = await copying
        return TakenOver(n_cached=n_cached, history=history)

    def _drop(self, going: Iterable[Parked]) -> None:
        for parked in going:
            session_id = parked.spec.session_id
            self.lot = self.lot.without(session_id)
            if self._link.error is None:
                self._link.post(partial(EngineCore.close, session_id=session_id))
            self._memory.release(session_id)
