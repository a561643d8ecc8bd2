"""The engine as the event loop sees it: everything awaits, nothing blocks; the device has a thread of its own.

Key-value memory is granted here (`worker.memory_gate`), before the thread hears of a session, and what sessions
that broke off leave is kept for a while (`worker.parking`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch

from protocol.errors import (
    CancelledByClientError,
    DrainingError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    StaleEpochError,
)
from protocol.ids import SessionId
from protocol.messages import SamplingParams
from worker.cache_plan import Reservation
from worker.engine_core import EngineCore
from worker.engine_link import EngineLink
from worker.history import History
from worker.memory_gate import MemoryGate
from worker.parking import PARK_S, Parked, ParkingLot, TakenOver
from worker.steps import EngineStats, LoadedSpan, LoadRequest, SessionSpec, SpanKey, StepInput, StepOutput

MAX_PENDING_STEPS = 1024
MAX_WAITING_SESSIONS = 64


class Engine:
    """Loads spans and runs sessions on one device. Use as an async context manager.

    Put `watch()` into the owner's task group: it raises when the engine's thread dies, and so does every call that
    waits then or comes later.
    """

    def __init__(
        self,
        *,
        device: torch.device,
        kv_budget_bytes: int,
        n_threads: int | None = None,
        max_batch_tokens: int = 512,
        max_waiting_sessions: int = MAX_WAITING_SESSIONS,
        max_pending_steps: int = MAX_PENDING_STEPS,
    ) -> None:
        self.device = device
        self._core = EngineCore(device)
        self._memory = MemoryGate(budget_bytes=kv_budget_bytes, max_waiting=max_waiting_sessions)
        self._link = EngineLink(
            self._core, n_threads=n_threads, max_batch_tokens=max_batch_tokens, on_failed=self._memory.fail_all
        )
        self._max_pending_steps = max_pending_steps
        self._spans: dict[SpanKey, LoadedSpan] = {}
        self._draining: set[SpanKey] = set()
        self._specs: dict[SessionId, SessionSpec] = {}
        """Of all sessions that wait for memory, run, or are being closed; who is parked is nobody's to close."""
        self._closing: dict[SessionId, asyncio.Future[Any]] = {}
        self._lot = ParkingLot()

    async def __aenter__(self) -> Self:
        self._link.start()
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _exc: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        """Stop: take nothing new, let the running batch end, fail what is pending, free everything."""
        await self._link.stop()

    async def watch(self) -> None:
        """Return when the engine has stopped.

        Raises:
            InternalError: its thread died; the program should end, its sessions are lost.
        """
        await self._link.watch()

    async def load(self, request: LoadRequest) -> LoadedSpan:
        """Load a span and warm it up; sessions pause meanwhile.

        Raises:
            UntrustedFileError: config or weights aren't what they should be.
            StorageError: a file can't be read.
            OverloadedError: the device has too little memory.
        """
        try:
            loaded: LoadedSpan = await self._link.post(lambda core: core.load(request))
        except asyncio.CancelledError:
            if request.key not in self._spans and self._link.error is None:  # the thread loads it nevertheless
                self._link.post(lambda core: core.unload(request.key))
            raise
        self._spans[request.key] = loaded
        return loaded

    async def unload(self, key: SpanKey, *, force: bool = False) -> None:
        """Drop a span, and what is parked of it; with `force`, close its sessions first.

        Raises:
            ConflictError: sessions still use it, and `force` wasn't given.
        """
        if force:
            self._draining.add(key)
        try:
            self._evict(self._lot.of_span(key))
            if force:
                for session_id in [s for s, spec in self._specs.items() if spec.span == key]:
                    await self.close_session(session_id)
            await self._link.post(lambda core: core.unload(key))
            self._spans.pop(key, None)
        finally:
            self._draining.discard(key)

    def loaded(self) -> tuple[LoadedSpan, ...]:
        """The spans that are loaded."""
        return tuple(self._spans.values())

    async def open_session(self, spec: SessionSpec, *, deadline_s: float) -> TakenOver | None:
        """Reserve memory for a session, waiting for it at most `deadline_s` seconds, and begin it.

        What the session that it continues has left here it takes over, if that fits; else it begins empty (None).

        Raises:
            NotFoundError: its span isn't loaded.
            InvalidRequestError: its blocks aren't a part of the span, or it has no positions.
            ConflictError: the session is open, or parked.
            OverloadedError: it can't fit, too many wait, or the wait was too long; the message has the numbers.
            DrainingError: the span is being unloaded, or the engine stopped.
        """
        reservation = self._reservation(spec)
        parked = self._lot.left_for(spec)
        if parked is not None:
            return await self._take_over(parked, spec)
        self._memory.request(reservation)
        self._specs[spec.session_id] = spec
        self._evict(self._lot.in_the_way(self._memory.plan.missing_bytes))
        try:
            await self._memory.wait(reservation, deadline_s)
        except BaseException:
            self._closed(spec.session_id)
            raise
        try:
            await self._link.post(lambda core: core.open(spec))
        except BaseException:
            # the thread may have opened it, or be about to: close in any case, the memory goes back after that
            self._begin_close(spec.session_id)
            raise
        return None

    async def attach_sampler(
        self, session_id: SessionId, sampling: SamplingParams, prompt_token_ids: Sequence[int]
    ) -> None:
        """Give a last stage's session what it needs to sample, before its first step that wants a token.

        Raises:
            NotFoundError: no such session.
        """
        await self._link.post(lambda core: core.attach_sampler(session_id, sampling, prompt_token_ids))

    async def run(self, step: StepInput) -> StepOutput:
        """Run one step; steps of one session run in the order of these calls.

        Raises:
            NotFoundError: no such session.
            StaleEpochError: the position was taken already, or the session was rolled back meanwhile.
            ProtocolError: a gap in the positions, or a payload that the stage can't take.
            ContextExceededError: more positions than the session reserved.
            OverloadedError: too many steps are pending, or the device ran out of memory.
            CancelledByClientError: the session was closed meanwhile.
        """
        n_pending = self._link.n_pending_steps
        if n_pending >= self._max_pending_steps:
            raise OverloadedError(f"{n_pending} steps are pending already: try again later")
        return await self._link.run(step)

    async def truncate(self, session_id: SessionId, position: int) -> None:
        """Roll a session back so that `position` is its next; pending steps of it fail as stale.

        Raises:
            NotFoundError: no such session.
            ProtocolError: the session hasn't come that far.
        """
        await self._link.post(
            lambda core: core.truncate(session_id, position),
            drops_session=session_id,
            drop_error=StaleEpochError(f"the session was rolled back to position {position}"),
        )

    async def close_session(self, session_id: SessionId) -> None:
        """End a session and free its memory; pending steps fail as cancelled. Idempotent."""
        closed = CancelledByClientError("the session was closed while it waited for memory")
        if self._memory.fail(session_id, closed):
            return
        future = self._begin_close(session_id)
        if future is not None:
            await asyncio.wait([future])  # unlike awaiting it: a cancelled caller must not cancel the closing

    def park_session(self, session_id: SessionId, history: History) -> bool:
        """End a session, but keep its cache for one that continues it; False if there is nothing to keep.

        Pending steps fail as cancelled. Memory that somebody waits for isn't kept: close the session then.
        """
        plan, spec = self._memory.plan, self._specs.get(session_id)
        is_open = session_id in plan.granted and session_id not in self._closing and self._link.error is None
        if spec is None or not is_open or plan.waiting or spec.span in self._draining:
            return False
        until_s = asyncio.get_running_loop().time() + PARK_S
        n_bytes = plan.granted[session_id]
        self._lot = self._lot.with_one(Parked(spec=spec, n_bytes=n_bytes, until_s=until_s, history=history))
        del self._specs[session_id]
        self._evict(self._lot.surplus())
        error = CancelledByClientError("the session broke off")
        self._link.post(lambda _core: None, drops_session=session_id, drop_error=error)
        return True

    def forget_parked(self, now_s: float) -> None:
        """Free what was parked for too long; `now_s` is the loop's clock."""
        self._evict(self._lot.expired(now_s))

    def resize_kv_budget(self, kv_budget_bytes: int) -> None:
        """Set how much memory sessions may use; open ones keep what they have."""
        self._memory.resize(kv_budget_bytes)
        self._evict(self._lot.in_the_way(self._memory.plan.missing_bytes))

    def stats(self) -> EngineStats:
        """How busy the engine is now."""
        plan = self._memory.plan
        return EngineStats(
            kv_budget_bytes=plan.budget_bytes,
            kv_free_bytes=max(0, plan.budget_bytes - plan.reserved_bytes + self._lot.n_bytes),
            n_sessions=len(plan.granted) - len(self._lot.parked),
            n_waiting_sessions=len(plan.waiting),
            n_pending_steps=self._link.n_pending_steps,
            n_positions_run=self._core.n_positions_run,
            decode_s_per_block=self._core.decode_s_per_block.value,
            prefill_s_per_token_per_block=self._core.prefill_s_per_token_per_block.value,
        )

    def _reservation(self, spec: SessionSpec) -> Reservation:
        self._link.check()
        if spec.span in self._draining:
            raise DrainingError(f"blocks {spec.span.blocks} are being unloaded")
        if spec.span not in self._spans:
            raise NotFoundError(f"blocks {spec.span.blocks} are not loaded on this worker")
        if not spec.span.blocks.contains(spec.blocks) or spec.n_positions < 1:
            raise InvalidRequestError(
                f"a session of {spec.n_positions} positions on blocks {spec.blocks}; loaded are {spec.span.blocks}"
            )
        return Reservation(
            session_id=spec.session_id,
            n_positions=spec.n_positions,
            bytes_per_position=self._spans[spec.span].kv_bytes_per_position(spec.blocks),
        )

    async def _take_over(self, parked: Parked, spec: SessionSpec) -> TakenOver:
        self._memory.hand_over(parked.spec.session_id, spec.session_id)
        self._lot = self._lot.without(parked.spec.session_id)
        self._specs[spec.session_id] = spec
        try:
            n_cached: int = await self._link.post(lambda core: core.adopt(spec, parked.spec.session_id))
        except BaseException:
            self._begin_close(spec.session_id)
            raise
        return TakenOver(n_cached=n_cached, history=parked.history)

    def _evict(self, going: Iterable[Parked]) -> None:
        """Free parked sessions; the thread drops them before whatever it is asked next, so it counts at once."""
        for parked in going:
            session_id = parked.spec.session_id
            self._lot = self._lot.without(session_id)
            if self._link.error is None:
                self._link.post(partial(EngineCore.close, session_id=session_id))
            self._closed(session_id)

    def _begin_close(self, session_id: SessionId) -> asyncio.Future[Any] | None:
        """Have the thread close the session; its memory is free again when the thread has done so."""
        if session_id in self._closing or session_id not in self._specs:
            return self._closing.get(session_id)
        if self._link.error is not None:
            self._closed(session_id)
            return None
        error = CancelledByClientError("the session was closed")
        future = self._link.post(lambda core: core.close(session_id), drops_session=session_id, drop_error=error)
        self._closing[session_id] = future
        future.add_done_callback(lambda _future: self._closed(session_id))
        return future

    def _closed(self, session_id: SessionId) -> None:
        self._closing.pop(session_id, None)
        self._specs.pop(session_id, None)
        self._memory.release(session_id)
