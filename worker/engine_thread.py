"""The one thread that owns the device: takes calls and steps from a queue, runs batches, hands results back.

Calls (load, open, close ...) run before the next batch, in order of arrival. Steps wait in order until a batch
takes them; where several sessions decode, a batch waits a moment for those of its group, and where they are of
several tenants (`worker.turns`), for those whose turn it is. A step of a session that is closed or rolled back
meanwhile is failed, not run.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from protocol.errors import BrigadeError
from protocol.ids import SessionId
from worker.batching import ReadyStep, gather_s, gather_until
from worker.engine_core import EngineCore
from worker.spare_time import SpareTime
from worker.steps import StepInput, StepOutput
from worker.turns import Turns

IDLE_S = 2.0
"""Without anything to do: longer than between two turns of a generation, so that it costs none of them."""


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

    def as_ready(self) -> ReadyStep:
        """What choosing a batch needs to know of it."""
        return ReadyStep(self.step.session_id, self.step.n_tokens, self.step.n_drafts)


@dataclass(frozen=True, slots=True)
class Steps:
    """Steps that came at once: together they wake the thread once."""

    steps: Sequence[Step]


class Stop:
    """Leave the loop; what is pending is not run."""


Item = Call | Step | Steps | Stop
"""What the thread is told."""


class EngineThread:
    """Runs until told to stop; `on_exit` is called last, with the exception that ended it or None."""

    def __init__(
        self,
        core: EngineCore,
        *,
        n_threads: int | None,
        max_batch_tokens: int,
        on_exit: Callable[[BaseException | None], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.inbox: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._core = core
        self._n_threads = n_threads
        self._max_batch_tokens = max_batch_tokens
        self._on_exit = on_exit
        self._clock = clock
        self._ready: list[Step] = []
        self._decode_step_s = 0.0
        """What the last batch of decode steps alone took."""
        self._is_rested = True
        """Whether nothing was done since the core last rested."""
        self._turns = Turns()
        core.measures.bounds = lambda: self._turns.bounds
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
            while self._take_inbox() and self._gather():
                self._run_batch()
        except BaseException as exc:  # noqa: BLE001 - the thread's outermost edge: whoever waits must hear of it
            error = exc
        self._core.sessions.clear()
        self._core.spans.clear()
        self._core.spare_time = SpareTime()
        self._on_exit(error)

    def _take_inbox(self) -> bool:
        """Take what is there, and wait for something if no step is ready; False if told to stop."""
        while True:
            try:
                item = self.inbox.get(block=False) if self._ready else self._next()
            except queue.Empty:
                return True
            if not self._take(item):
                return False

    def _next(self) -> Item:
        """Wait for something to do, and use the time if there is nothing for a while."""
        if not self._is_rested:
            try:
                return self.inbox.get(timeout=IDLE_S)
            except queue.Empty:
                while self._core.rest():
                    if not self.inbox.empty():
                        return self.inbox.get()
                self._is_rested = True
        return self.inbox.get()

    def _gather(self) -> bool:
        """Wait a moment for the other steps of a group, and for who is behind; False if told to stop."""
        if self._turns.n_decoding < 2 and not self._turns.is_shared:  # one stream waits for nobody
            return True
        ready = self._ready_steps()
        size = self._turns.group_size(ready)
        group_s, began_s = gather_s(ready, size, self._decode_step_s), self._clock()
        until_s = began_s + (group_s or self._turns.wait_s(ready, self._max_batch_tokens, size))
        while (left_s := until_s - self._clock()) > 0 and (
            len(self._ready) < size.least if group_s else self._turns.is_waited_for(self._ready_steps())
        ):
            try:
                item = self.inbox.get(timeout=left_s)
            except queue.Empty:
                break
            if not self._take(item):
                return False
            if group_s:
                until_s = gather_until(began_s, self._clock(), group_s, self._decode_step_s)
        return True

    def _take(self, item: Item) -> bool:
        """Carry out a call, keep steps for a batch; False if told to stop."""
        self._is_rested = False
        match item:
            case Stop():
                return False
            case Step():
                self._keep(item)
            case Steps():
                for step in item.steps:
                    self._keep(step)
            case Call():
                self._carry_out(item)
        return True

    def _keep(self, item: Step) -> None:
        self._ready.append(item)
        session = self._core.sessions.get(item.step.session_id)
        if session is not None:
            self._turns.begun(item.step.session_id, session.spec.tenant)
            if item.as_ready().is_decode:
                self._turns.decodes(item.step.session_id, session.spec.n_hops)

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
        self._turns.ended(session_id)

    def _ready_steps(self) -> list[ReadyStep]:
        return [item.as_ready() for item in self._ready]

    def _run_batch(self) -> None:
        self._ready = [item for item in self._ready if not item.reply.is_cancelled()]
        if not self._ready:
            return
        ready = self._ready_steps()
        turn = self._turns.next(ready, self._max_batch_tokens, self._turns.group_size(ready))
        batch = [self._ready[index] for index in turn.chosen]
        taken = set(turn.chosen)
        self._ready = [item for index, item in enumerate(self._ready) if index not in taken]
        started_s = self._clock()
        for index, result in self._core.run_batch([item.step for item in batch]):
            match result:
                case StepOutput():
                    batch[index].reply.resolve(result)
                case BrigadeError():
                    batch[index].reply.fail(result)
        took_s = self._clock() - started_s
        self._turns.ran(turn, sum(item.step.n_tokens for item in batch), took_s)
        if all(item.as_ready().is_decode for item in batch):
            self._decode_step_s = took_s
