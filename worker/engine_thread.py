"""The one thread that owns the device: takes calls and steps from a queue, runs batches, hands results back.

Calls (load, open, close ...) run before the next batch, in order of arrival. Steps wait in order until a batch
takes them. A step of a session that is closed or rolled back meanwhile is failed, not run.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from protocol.errors import BrigadeError
from protocol.ids import SessionId
from worker.batching import ReadyStep, next_batch
from worker.engine_core import EngineCore
from worker.steps import StepInput, StepOutput


class Reply(Protocol):
    """Where a result goes; called from the engine's thread."""

    def is_cancelled(self) -> bool:
        """Whether nobody waits any more."""
        ...

    def resolve(self, result: Any) -> None:
        """Hand over the result."""
        ...

    def fail(self, error: Exception) -> None:
        """Hand over what went wrong."""
        ...


@dataclass(frozen=True, slots=True)
class Call:
    """Something to do with the core between batches; fails the session's pending steps first if told to."""

    act: Callable[[EngineCore], Any]
    reply: Reply
    drops_session: SessionId | None = None
    drop_error: BrigadeError | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """A step to run in some batch."""

    step: StepInput
    reply: Reply


class Stop:
    """Leave the loop; what is pending is not run."""


class EngineThread:
    """Runs until told to stop; `on_exit` is called last, with the exception that ended it or None."""

    def __init__(
        self,
        core: EngineCore,
        *,
        n_threads: int | None,
        max_batch_tokens: int,
        on_exit: Callable[[BaseException | None], None],
    ) -> None:
        self.inbox: queue.SimpleQueue[Call | Step | Stop] = queue.SimpleQueue()
        self._core = core
        self._n_threads = n_threads
        self._max_batch_tokens = max_batch_tokens
        self._on_exit = on_exit
        self._ready: list[Step] = []
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def join(self) -> None:
        """Wait for the end; blocks, so not on an event loop."""
        self._thread.join()

    def _main(self) -> None:
        error: BaseException | None = None
        try:
            if self._n_threads is not None:
                torch.set_num_threads(self._n_threads)
            while self._take_inbox():
                self._run_batch()
        except BaseException as exc:  # noqa: BLE001 - the thread's outermost edge: whoever waits must hear of it
            error = exc
        self._core.sessions.clear()
        self._core.spans.clear()
        self._on_exit(error)

    def _take_inbox(self) -> bool:
        """Carry out the calls and collect the steps that are there; wait for one if no step is ready."""
        is_idle = not self._ready
        while True:
            try:
                item = self.inbox.get(block=is_idle)
            except queue.Empty:
                return True
            match item:
                case Stop():
                    return False
                case Step():
                    self._ready.append(item)
                    is_idle = False
                case Call():
                    self._carry_out(item)
                    is_idle = not self._ready

    def _carry_out(self, call: Call) -> None:
        if call.drops_session is not None and call.drop_error is not None:
            self._drop(call.drops_session, call.drop_error)
        try:
            result = call.act(self._core)
        except BrigadeError as exc:
            call.reply.fail(exc)
        else:
            call.reply.resolve(result)

    def _drop(self, session_id: SessionId, error: BrigadeError) -> None:
        for item in self._ready:
            if item.step.session_id == session_id:
                item.reply.fail(error)
        self._ready = [item for item in self._ready if item.step.session_id != session_id]

    def _run_batch(self) -> None:
        self._ready = [item for item in self._ready if not item.reply.is_cancelled()]
        ready = [ReadyStep(item.step.session_id, item.step.n_tokens) for item in self._ready]
        chosen = next_batch(ready, self._max_batch_tokens)
        batch = [self._ready[index] for index in chosen]
        taken = set(chosen)
        self._ready = [item for index, item in enumerate(self._ready) if index not in taken]
        results = self._core.run_batch([item.step for item in batch])
        for item, result in zip(batch, results, strict=True):
            match result:
                case StepOutput():
                    item.reply.resolve(result)
                case BrigadeError():
                    item.reply.fail(result)
