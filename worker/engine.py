"""The engine as the event loop sees it: everything awaits, nothing blocks; the device has a thread of its own.

Key-value memory is granted here (`worker.memory_gate`), before the thread hears of a session.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import torch

from protocol.errors import (
    BrigadeError,
    CancelledByClientError,
    DrainingError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    StaleEpochError,
)
from protocol.ids import SessionId
from protocol.messages import SamplingParams
from worker.cache_plan import Reservation
from worker.engine_core import EngineCore
from worker.engine_thread import Call, EngineThread, Step, Stop
from worker.loop_reply import LoopReply
from worker.memory_gate import MemoryGate
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
        self._thread = EngineThread(
            self._core, n_threads=n_threads, max_batch_tokens=max_batch_tokens, on_exit=self._thread_ended
        )
        self._memory = MemoryGate(budget_bytes=kv_budget_bytes, max_waiting=max_waiting_sessions)
        self._max_pending_steps = max_pending_steps
        self._spans: dict[SpanKey, LoadedSpan] = {}
        self._draining: set[SpanKey] = set()
        self._span_of: dict[SessionId, SpanKey] = {}
        self._closing: dict[SessionId, asyncio.Future[Any]] = {}
        self._outstanding: set[asyncio.Future[Any]] = set()
        self._n_pending_steps = 0
        self._error: BrigadeError | None = DrainingError("the engine has not been started")

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._error = None
        self._thread.start()
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _exc: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        """Stop: take nothing new, let the running batch end, fail what is pending, free everything."""
        if self._error is None:
            self._error = DrainingError("the engine is stopping")
        self._thread.inbox.put(Stop())
        await asyncio.to_thread(self._thread.join)
        self._fail_all(self._error)

    async def watch(self) -> None:
        """Return when the engine has stopped.

        Raises:
            InternalError: its thread died; the program should end, its sessions are lost.
        """
        await self._ended.wait()
        if isinstance(self._error, InternalError):
            raise self._error

    async def load(self, request: LoadRequest) -> LoadedSpan:
        """Load a span and warm it up; sessions pause meanwhile.

        Raises:
            UntrustedFileError: config or weights aren't what they should be.
            StorageError: a file can't be read.
            OverloadedError: the device has too little memory.
        """
        try:
            loaded: LoadedSpan = await self._call(lambda core: core.load(request))
        except asyncio.CancelledError:
            if request.key not in self._spans and self._error is None:  # the thread loads it nevertheless
                self._thread.inbox.put(Call(lambda core: core.unload(request.key), self._new_reply()))
            raise
        self._spans[request.key] = loaded
        return loaded

    async def unload(self, key: SpanKey, *, force: bool = False) -> None:
        """Drop a span; with `force`, close its sessions first.

        Raises:
            ConflictError: sessions still use it, and `force` wasn't given.
        """
        if force:
            self._draining.add(key)
        try:
            if force:
                for session_id in [s for s, span in self._span_of.items() if span == key]:
                    await self.close_session(session_id)
            await self._call(lambda core: core.unload(key))
            self._spans.pop(key, None)
        finally:
            self._draining.discard(key)

    def loaded(self) -> tuple[LoadedSpan, ...]:
        """The spans that are loaded."""
        return tuple(self._spans.values())

    async def open_session(self, spec: SessionSpec, *, deadline_s: float) -> None:
        """Reserve memory for a session, waiting for it at most `deadline_s` seconds, and begin it.

        Raises:
            NotFoundError: its span isn't loaded.
            InvalidRequestError: its blocks aren't a part of the span, or it has no positions.
            ConflictError: the session is open.
            OverloadedError: it can't fit, too many wait, or the wait was too long; the message has the numbers.
            DrainingError: the span is being unloaded, or the engine stopped.
        """
        reservation = self._reservation(spec)
        self._memory.request(reservation)
        self._span_of[spec.session_id] = spec.span
        try:
            await self._memory.wait(reservation, deadline_s)
        except BaseException:
            self._closed(spec.session_id)
            raise
        try:
            await self._call(lambda core: core.open(spec))
        except BaseException:
            # the thread may have opened it, or be about to: close in any case, the memory goes back after that
            self._begin_close(spec.session_id)
            raise

    async def attach_sampler(
        self, session_id: SessionId, sampling: SamplingParams, prompt_token_ids: Sequence[int]
    ) -> None:
        """Give a last stage's session what it needs to sample, before its first step that wants a token.

        Raises:
            NotFoundError: no such session.
        """
        await self._call(lambda core: core.attach_sampler(session_id, sampling, prompt_token_ids))

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
        if self._n_pending_steps >= self._max_pending_steps:
            raise OverloadedError(f"{self._n_pending_steps} steps are pending already: try again later")
        reply = self._new_reply()
        self._n_pending_steps += 1
        reply.future.add_done_callback(self._step_done)
        self._thread.inbox.put(Step(step, reply))
        output: StepOutput = await reply.future
        return output

    async def truncate(self, session_id: SessionId, position: int) -> None:
        """Roll a session back so that `position` is its next; pending steps of it fail as stale.

        Raises:
            NotFoundError: no such session.
            ProtocolError: the session hasn't come that far.
        """
        await self._call(
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

    def resize_kv_budget(self, kv_budget_bytes: int) -> None:
        """Set how much memory sessions may use; open ones keep what they have."""
        self._memory.resize(kv_budget_bytes)

    def stats(self) -> EngineStats:
        """How busy the engine is now."""
        plan = self._memory.plan
        return EngineStats(
            kv_budget_bytes=plan.budget_bytes,
            kv_free_bytes=plan.free_bytes,
            n_sessions=len(plan.granted),
            n_waiting_sessions=len(plan.waiting),
            n_pending_steps=self._n_pending_steps,
            decode_s_per_block=self._core.decode_s_per_block.value,
            prefill_s_per_token_per_block=self._core.prefill_s_per_token_per_block.value,
        )

    def _reservation(self, spec: SessionSpec) -> Reservation:
        if self._error is not None:
            raise self._error
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

    def _begin_close(self, session_id: SessionId) -> asyncio.Future[Any] | None:
        """Have the thread close the session; its memory is free again when the thread has done so."""
        if session_id in self._closing or session_id not in self._span_of:
            return self._closing.get(session_id)
        if self._error is not None:
            self._closed(session_id)
            return None
        reply = self._new_reply()
        self._closing[session_id] = reply.future
        reply.future.add_done_callback(lambda future: self._closed(session_id, future))
        error = CancelledByClientError("the session was closed")
        call = Call(lambda core: core.close(session_id), reply, drops_session=session_id, drop_error=error)
        self._thread.inbox.put(call)
        return reply.future

    def _closed(self, session_id: SessionId, future: asyncio.Future[Any] | None = None) -> None:
        if future is not None and not future.cancelled():
            future.exception()  # seen: only a dying engine sets one, and that is told elsewhere
        self._closing.pop(session_id, None)
        self._span_of.pop(session_id, None)
        self._memory.release(session_id)

    def _new_reply(self) -> LoopReply:
        if self._error is not None:
            raise self._error
        reply = LoopReply(self._loop)
        self._outstanding.add(reply.future)
        reply.future.add_done_callback(self._outstanding.discard)
        return reply

    async def _call(
        self,
        act: Callable[[EngineCore], Any],
        *,
        drops_session: SessionId | None = None,
        drop_error: BrigadeError | None = None,
    ) -> Any:
        reply = self._new_reply()
        self._thread.inbox.put(Call(act, reply, drops_session, drop_error))
        return await reply.future

    def _step_done(self, _future: asyncio.Future[Any]) -> None:
        self._n_pending_steps -= 1

    def _thread_ended(self, error: BaseException | None) -> None:
        """Called by the thread, last."""
        self._loop.call_soon_threadsafe(self._ended_with, error)

    def _ended_with(self, error: BaseException | None) -> None:
        if error is not None:
            died = InternalError("the engine's thread died; the worker has to be restarted")
            died.__cause__ = error
            self._error = died
            self._fail_all(died)
        self._ended.set()

    def _fail_all(self, error: BrigadeError) -> None:
        self._memory.fail_all(error)
        for future in tuple(self._outstanding):
            if not future.done():
                future.set_exception(error)
