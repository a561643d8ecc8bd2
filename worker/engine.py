"""The engine as the event loop sees it: everything awaits, nothing blocks; the device has a thread of its own.

Key-value memory is granted here (`worker.memory_gate`), before the thread hears of a session, and what sessions
leave is kept for those that share their text, as long as nobody needs the memory (`worker.kept`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
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
from protocol.messages import KvPrecision, SamplingParams
from worker.cache_plan import Reservation
from worker.drafter import Drafter
from worker.engine_core import EngineCore
from worker.engine_link import EngineLink
from worker.grammar import Grammar
from worker.history import History
from worker.kept import KeptSessions
from worker.memory_gate import MemoryGate
from worker.parking import TakenOver
from worker.quantised_cache import QuantisedCache
from worker.steps import EngineStats, LoadedSpan, LoadRequest, SessionSpec, SpanKey, StepInput, StepOutput

MAX_PENDING_STEPS = 1024
MAX_WAITING_SESSIONS = 128
"""One API key alone can have half of them."""


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
        kv_precision: KvPrecision | None = None,
        quantised: QuantisedCache | None = None,
    ) -> None:
        """`kv_precision`: of caches; None: as computed. `quantised`: keeps codes made of files, by their hashes."""
        self.device = device
        self._core = EngineCore(device, kv_precision, quantised)
        self._memory = MemoryGate(budget_bytes=kv_budget_bytes, max_waiting=max_waiting_sessions)
        self._link = EngineLink(
            self._core, n_threads=n_threads, max_batch_tokens=max_batch_tokens, on_failed=self._memory.fail_all
        )
        self.measures = self._core.measures  # read here, written in the thread
        self.drafter = Drafter(self._link)
        self._max_pending_steps = max_pending_steps
        self._spans: dict[SpanKey, LoadedSpan] = {}
        self._draining: set[SpanKey] = set()
        self._specs: dict[SessionId, SessionSpec] = {}
        """Of all sessions that wait for memory, run, or are being closed; who is parked is nobody's to close."""
        self._closing: dict[SessionId, asyncio.Future[Any]] = {}
        self._kept = KeptSessions(self._memory, self._link)

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
            self._kept.forget_span(key)
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

        It begins with what the session that it goes on from has left here, if that is there; else empty (None).

        Raises:
            NotFoundError: its span isn't loaded.
            InvalidRequestError: its blocks aren't a part of the span, or it has no positions.
            ConflictError: the session is open, or parked.
            OverloadedError: it can't fit, too many wait, or the wait was too long; the message has the numbers.
            DrainingError: the span is being unloaded, or the engine stopped.
        """
        reservation = self._reservation(spec)
        lengths = self._spans[spec.span].text_lengths
        left = self._kept.left_for(spec, lengths)
        if left is not None and self._kept.hand_over(left, spec, reservation):
            self._specs[spec.session_id] = spec
            opening: Coroutine[Any, Any, TakenOver | None] = self._kept.moved(left, spec)
        else:
            await self._granted(spec, reservation, deadline_s)
            left = self._kept.left_for(spec, lengths)  # it may have had to go
            opening = self._begun(spec) if left is None else self._kept.copied(left, spec)
        try:
            return await opening
        except BaseException:
            # the thread may have opened it, or be about to: close in any case, the memory goes back after that
            self._begin_close(spec.session_id)
            raise

    async def attach_sampler(
        self, session_id: SessionId, sampling: SamplingParams, prompt: Sequence[int], grammar: Grammar | None = None
    ) -> None:
        """Give a last stage's session what it needs to sample, before its first step that wants a token.

        Raises as `EngineCore.attach_sampler`.
        """
        await self._link.post(lambda core: core.attach_sampler(session_id, sampling, prompt, grammar))

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
        if self._memory.fail(session_id, CancelledByClientError("the session was closed as it waited for memory")):
            return
        future = self._begin_close(session_id)
        if future is not None:
            await asyncio.wait([future])  # unlike awaiting it: a cancelled caller must not cancel the closing

    def park_session(self, session_id: SessionId, history: History) -> bool:
        """End a session, but keep its cache for others; False if there is nothing to keep.

        Pending steps fail as cancelled. What the session had reserved and not used is free at once.
        """
        spec = self._specs.get(session_id)
        is_open = session_id in self._memory.plan.granted and session_id not in self._closing
        if spec is None or not is_open or self._link.error is not None or spec.span in self._draining:
            return False
        if not self._kept.keep(spec, history):
            return False
        del self._specs[session_id]
        return True

    def forget_parked(self, now_s: float) -> None:
        """Free what was parked for too long; `now_s` is the loop's clock."""
        self._kept.forget_expired(now_s)

    def resize_kv_budget(self, kv_budget_bytes: int) -> None:
        """Set how much memory sessions may use; open ones keep what they have."""
        self._memory.resize(kv_budget_bytes)
        self._kept.make_room()

    @property
    def n_sessions(self) -> int:
        """Sessions that are open, not those that are kept."""
        return len(self._memory.plan.granted) - len(self._kept.lot.parked)

    def stats(self) -> EngineStats:
        """How busy the engine is now."""
        plan = self._memory.plan
        return EngineStats(
            kv_budget_bytes=plan.budget_bytes,
            kv_free_bytes=max(0, plan.budget_bytes - plan.reserved_bytes + self._kept.lot.n_bytes),
            n_sessions=self.n_sessions,
            n_waiting_sessions=len(plan.waiting),
            n_pending_steps=self._link.n_pending_steps,
            n_positions_run=self.measures.n_positions_run,
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
            bytes_per_position=self._spans[spec.span].kv_bytes_per_position(spec.blocks, hands_on=spec.hands_on),
            held_as=self._spans[spec.span].kv_precision,
            tenant=spec.tenant,
        )

    async def _granted(self, spec: SessionSpec, reservation: Reservation, deadline_s: float) -> None:
        self._memory.request(reservation)
        self._specs[spec.session_id] = spec
        self._kept.make_room()
        try:
            await self._memory.wait(reservation, deadline_s)
        except BaseException:
            self._closed(spec.session_id)
            raise

    async def _begun(self, spec: SessionSpec) -> TakenOver | None:
        await self._link.post(lambda core: core.open(spec))
        return None

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
