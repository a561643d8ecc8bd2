from __future__ import annotations

import gc
import statistics
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
import torch

from protocol.ids import SessionId
from tests.support.tiny_checkpoint import CPU, WHOLE, TinyCheckpoint
from worker.engine_core import EngineCore
from worker.engine_thread import Call, EngineThread, Step, Stop
from worker.fairness import Tenant
from worker.steps import SessionSpec, StepInput, StepOutput

NAMES = [SessionId(name) for name in "abcde"]
WITHIN_S = 30.0


class FutureReply:
    """A reply that a thread can wait for."""

    def __init__(self) -> None:
        self.future: Future[Any] = Future()

    def is_cancelled(self) -> bool:
        return self.future.cancelled()

    def resolve(self, result: Any) -> None:
        self.future.set_result(result)

    def fail(self, error: Exception) -> None:
        self.future.set_exception(error)


def token(name: SessionId) -> Step:
    payload = torch.tensor([5], dtype=torch.int32)
    return Step(StepInput(session_id=name, position=0, n_tokens=1, payload=payload), FutureReply())


@pytest.mark.parametrize(("n_hops", "expected"), [(1, [5]), (2, [3, 2]), (9, [1] * 5)])
def test_sessions_decode_in_as_many_groups_as_their_routes_have_hops(
    checkpoint: Callable[[str], TinyCheckpoint], n_hops: int, expected: list[int]
) -> None:
    core = EngineCore(CPU)
    loaded = core.load(checkpoint("llama").request(WHOLE))
    n_rows: list[int] = []
    ((stage, _),) = core.spans.values()
    stage._base.register_forward_pre_hook(
        lambda _model, _args, kwargs: n_rows.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    for name in NAMES:
        core.open(SessionSpec(session_id=name, span=loaded.key, blocks=WHOLE, n_positions=8, n_hops=n_hops))
    thread = EngineThread(core, n_threads=None, max_batch_tokens=64, on_exit=lambda _error: None)
    all_are_there = threading.Event()
    thread.inbox.put(Call(lambda _core: all_are_there.wait(WITHIN_S), FutureReply()))
    thread.start()
    steps = [token(name) for name in NAMES]
    for step in steps:
        thread.inbox.put(step)
    all_are_there.set()
    for step in steps:
        assert isinstance(step.reply.future.result(WITHIN_S), StepOutput)  # type: ignore[attr-defined]
    thread.inbox.put(Stop())
    thread.join()
    assert n_rows == expected


def test_nothing_of_a_model_is_kept_once_the_thread_has_ended(
    checkpoint: Callable[[str], TinyCheckpoint],
) -> None:
    core = EngineCore(CPU)
    core.load(checkpoint("llama").request(WHOLE))
    stages = [weakref.ref(stage) for stage, _ in core.spans.values()]
    thread = EngineThread(core, n_threads=None, max_batch_tokens=64, on_exit=lambda _error: None)
    thread.inbox.put(Stop())
    thread.start()
    thread.join()
    gc.collect()
    assert [stage() for stage in stages] == [None]


MANY, ONE = Tenant("many"), Tenant("one")
N_TOKENS = 80
N_LEARNED = 20
"""Tokens in which the thread learns what batches take."""


def device_s(n_rows: int) -> float:
    """What a batch takes on a modelled device."""
    return 0.004 + 0.0004 * n_rows


class Stream:
    """A session whose next step comes the moment that the last one is done; the engine's thread does it all."""

    def __init__(
        self, thread: EngineThread, session_id: SessionId, n_tokens: int, on_step: Callable[[], None]
    ) -> None:
        self._thread, self._session_id, self._n_tokens, self._on_step = thread, session_id, n_tokens, on_step
        self._position = 0

    def is_cancelled(self) -> bool:
        return False

    def begin(self) -> None:
        payload = torch.full((self._n_tokens,), 5, dtype=torch.int32)
        step = StepInput(
            session_id=self._session_id, position=self._position, n_tokens=self._n_tokens, payload=payload
        )
        self._thread.inbox.put(Step(step, self))

    def resolve(self, _result: Any) -> None:
        self._position += self._n_tokens
        self._on_step()
        self.begin()

    def fail(self, error: Exception) -> None:
        """The end of its positions."""


@pytest.mark.parametrize("n_tokens", [1, 12])
def test_fifty_streams_of_one_key_slow_anothers_by_two_and_one_batch(
    checkpoint: Callable[[str], TinyCheckpoint], n_tokens: int
) -> None:
    """Counted in batches and what they take, once it is known what batches take; nothing else takes time."""
    core = EngineCore(CPU)
    loaded = core.load(checkpoint("llama").request(WHOLE))
    n_rows: list[int] = []
    ((stage, _),) = core.spans.values()

    def count(_model: Any, _args: Any, kwargs: Any) -> None:
        n_rows.append(kwargs["input_ids"].shape[1])

    def clock() -> float:
        return sum(map(device_s, n_rows))

    stage._base.register_forward_pre_hook(count, with_kwargs=True)
    thread = EngineThread(core, n_threads=None, max_batch_tokens=64, on_exit=lambda _error: None, clock=clock)
    until: list[int] = []
    is_over = threading.Event()

    def token_came() -> None:
        until.append(len(n_rows))
        if len(until) == N_TOKENS:
            is_over.set()

    def begin(streams: dict[SessionId, tuple[Tenant, int, Callable[[], None]]]) -> None:
        for session_id, (tenant, size, on_step) in streams.items():
            core.open(
                SessionSpec(session_id=session_id, span=loaded.key, blocks=WHOLE, n_positions=4000, tenant=tenant)
            )
            Stream(thread, session_id, size, on_step).begin()

    many = {SessionId(f"many-{i}"): (MANY, n_tokens, lambda: None) for i in range(50)}
    begin(many | {SessionId("one"): (ONE, 1, token_came)})
    thread.start()
    assert is_over.wait(WITHIN_S)
    thread.inbox.put(Stop())
    thread.join()
    during = n_rows[until[N_LEARNED] : until[-1]]
    n_steps = len(until) - 1 - N_LEARNED
    took_s, longest_s = sum(map(device_s, during)), max(map(device_s, during))
    assert took_s <= 2.6 * n_steps * device_s(1) + longest_s  # without turns: 5.5 and 6.5 times
    assert sum(during) > 3 * n_steps, "the others go on as well"
    if n_tokens == 1:
        assert statistics.median(during) <= 30, "batches of 50 would have it wait too long for those that run"
