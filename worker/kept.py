"""The caches of sessions that are over, kept for those that go on from them: the shell around `worker.parking`.

Their memory is granted still (`worker.memory_gate`), under their own ids; it is given back the moment somebody
needs it. Lives on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial

from protocol.ids import SessionId
from worker.engine_core import EngineCore
from worker.engine_link import EngineLink
from worker.history import History
from worker.memory_gate import MemoryGate
from worker.parking import PARK_S, Parked, ParkingLot, TakenOver
from worker.steps import SessionSpec, SpanKey


class KeptSessions:
    """What is parked. The engine's thread does what it is asked in order, so what goes counts as gone at once."""

    def __init__(self, memory: MemoryGate, link: EngineLink) -> None:
        self.lot = ParkingLot()
        self._memory = memory
        self._link = link

    def keep(self, spec: SessionSpec, history: History) -> bool:
        """Park a session that has its memory; False if there is nothing to keep, or somebody waits for it."""
        if not history.n_settled or self._memory.plan.waiting:
            return False
        parked = Parked(
            spec=spec,
            n_bytes=self._memory.plan.granted[spec.session_id],
            until_s=asyncio.get_running_loop().time() + PARK_S,
            history=history,
        )
        self.lot = self.lot.with_last(parked)
        self._drop(self.lot.surplus())
        return True

    def left_for(self, spec: SessionSpec) -> Parked | None:
        """What the session may begin with; from now on that is the last to make room for others."""
        left = self.lot.left_for(spec)
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

    def hand_over(self, left: Parked, new: SessionId) -> None:
        """Give a new session the memory of a parked one; then `moved`.

        Raises:
            ConflictError: the new one has a reservation.
        """
        self._memory.hand_over(left.spec.session_id, new)
        self.lot = self.lot.without(left.spec.session_id)

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
