"""The event loop's end of the engine's thread: calls and steps go in, results come out as futures.

When the thread dies, everybody who waits is told, and so is whoever comes later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from protocol.background import uninterrupted
from protocol.errors import BrigadeError, DrainingError, InternalError
from protocol.ids import SessionId
from worker.engine_core import EngineCore
from worker.engine_thread import Call, EngineThread, Step, Steps, Stop
from worker.loop_reply import LoopReplies, LoopReply
from worker.steps import StepInput, StepOutput


class EngineLink:
    """Owns the thread. `on_failed` hears once why nothing goes in any more."""

    def __init__(
        self,
        core: EngineCore,
        *,
        n_threads: int | None,
        max_batch_tokens: int,
        on_failed: Callable[[BrigadeError], None],
    ) -> None:
        self.error: BrigadeError | None = DrainingError("the engine has not been started")
        """Why nothing can be asked of the thread; None while it runs."""
        self.n_pending_steps = 0
        self._thread = EngineThread(
            core, n_threads=n_threads, max_batch_tokens=max_batch_tokens, on_exit=self._thread_ended
        )
        self._on_failed = on_failed
        self._outstanding: set[asyncio.Future[Any]] = set()
        self._arrived: list[Step] = []
        """Steps that go to the thread when the loop is done with what it has ready: all at once, or a group that
        came at once would be taken for one that comes bit by bit, and run in parts."""
        self._handing_in: asyncio.Handle | None = None
        """That they will be; None while there are none."""

    def start(self) -> None:
        """Begin."""
        self._loop = asyncio.get_running_loop()
        self._replies = LoopReplies(self._loop)
        self._ended = asyncio.Event()
        self.error = None
        self._thread.start()

    async def stop(self) -> None:
        """Take nothing new, let the running batch end, fail what is pending. The thread outlives no loop."""
        if self.error is None:
            self.error = DrainingError("the engine is stopping")
        self._thread.inbox.put(Stop())
        try:
            await uninterrupted(asyncio.to_thread(self._thread.join))
        finally:
            self._fail_all(self.error)

    async def watch(self) -> None:
        """Return when the thread has stopped.

        Raises:
            InternalError: it died.
        """
        await self._ended.wait()
        if isinstance(self.error, InternalError):
            raise self.error

    def check(self) -> None:
        """Refuse if the thread doesn't run.

        Raises:
            BrigadeError: why.
        """
        if self.error is not None:
            raise self.error

    def post(
        self,
        act: Callable[[EngineCore], Any],
        *,
        drops_session: SessionId | None = None,
        drop_error: BrigadeError | None = None,
    ) -> asyncio.Future[Any]:
        """Have the thread do something; what is posted is done, in order, whether anybody waits or not.

        With `drops_session`, that session's pending steps fail with `drop_error` before.
        """
        reply = self._new_reply(self._settled)
        self._hand_in()
        self._thread.inbox.put(Call(act, reply, drops_session, drop_error))
        return reply.future

    def run(self, step: StepInput) -> asyncio.Future[StepOutput]:
        """Have the thread run a step; one that is cancelled before its batch isn't run."""
        reply = self._new_reply(self._step_settled)
        self.n_pending_steps += 1
        if self._handing_in is None:
            self._handing_in = self._loop.call_soon(self._hand_in)
        self._arrived.append(Step(step, reply))
        return reply.future

    def _hand_in(self) -> None:
        """Give the thread what came since, once: what comes after this is handed in by itself, and not in parts."""
        if self._handing_in is not None:
            self._handing_in.cancel()
            self._handing_in = None
        if len(self._arrived) == 1:
            self._thread.inbox.put(self._arrived[0])
        elif self._arrived:
            self._thread.inbox.put(Steps(tuple(self._arrived)))
        self._arrived.clear()

    def _new_reply(self, settled: Callable[[asyncio.Future[Any]], None]) -> LoopReply:
        self.check()
        reply = self._replies.new()
        self._outstanding.add(reply.future)
        reply.future.add_done_callback(settled)
        return reply

    def _settled(self, future: asyncio.Future[Any]) -> None:
        self._outstanding.discard(future)
        if not future.cancelled():
            future.exception()  # seen: not everybody waits for what was posted

    def _step_settled(self, future: asyncio.Future[Any]) -> None:
        self.n_pending_steps -= 1
        self._settled(future)

    def _thread_ended(self, error: BaseException | None) -> None:
        """Called by the thread, last."""
        self._loop.call_soon_threadsafe(self._ended_with, error)

    def _ended_with(self, error: BaseException | None) -> None:
        if error is not None:
            died = InternalError("the engine's thread died; the worker has to be restarted")
            died.__cause__ = error
            self.error = died
            self._fail_all(died)
        self._ended.set()

    def _fail_all(self, error: BrigadeError) -> None:
        self._on_failed(error)
        for future in tuple(self._outstanding):
            if not future.done():
                future.set_exception(error)
