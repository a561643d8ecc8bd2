from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
import torch

from protocol.ids import SessionId
from tests.support.tiny_checkpoint import CPU, WHOLE, TinyCheckpoint
from worker.engine_core import EngineCore
from worker.engine_thread import Call, EngineThread, Step, Stop
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
