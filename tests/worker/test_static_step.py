"""Recorded steps whose tensors stay where they are, against the same pieces run one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import fx

from protocol.messages import KvPrecision
from tests.support.tiny_checkpoint import WHOLE, TinyCheckpoint
from worker import compiled_step
from worker.batching_trial import settle_batching, trial_payload
from worker.compiled_pieces import Hole, Piece, Pieces, as_short_as_can_be, as_they_are
from worker.compiled_recording import Recording, record
from worker.compiled_sizes import between, size_ranges
from worker.compiled_step import RecordedStep
from worker.stage import Stage, StageInput
from worker.static_step import Places, StaticStep, _used_later, can_stay

N_STEPS = 4
Checkpoints = Callable[[str], TinyCheckpoint]
Cut = Callable[[Recording], Pieces]


def recorded(stage: Stage, n_sessions: int) -> Recording:
    """Of one session, or of so many and others."""
    settle_batching(stage)
    if n_sessions == 1:
        return record(stage)
    sizes = next(sizes for sizes in size_ranges(stage) if n_sessions in sizes)
    return between(record(stage, sizes[0]), record(stage, sizes[-1]))


@torch.inference_mode()
def answers(
    stage: Stage, step: RecordedStep, n_sessions: int, held_as: KvPrecision | None = None
) -> list[torch.Tensor]:
    """What comes out of some steps of so many sessions, after prompts of unequal length."""
    generator = torch.Generator().manual_seed(n_sessions)
    caches = [stage.new_cache(20, held_as) for _ in range(n_sessions)]
    for number, cache in enumerate(caches):
        prompt = trial_payload(stage, 3 + number % 4, generator)
        stage.run_alone(StageInput(payload=prompt, position=0, cache=cache))
    found = []
    for _ in range(N_STEPS):
        payload = trial_payload(stage, n_sessions, generator)
        inputs = [
            StageInput(payload=one, position=cache.length, cache=cache, n_logits=int(stage.is_last))
            for one, cache in zip(payload.split_with_sizes([1] * n_sessions), caches, strict=True)
        ]
        found.append(torch.cat(step(inputs)))
    return found


def steps_of(
    stage: Stage, recording: Recording, monkeypatch: pytest.MonkeyPatch, cut: Cut = as_short_as_can_be
) -> tuple[RecordedStep, RecordedStep]:
    """With tensors that stay, and the same pieces without."""
    staying = RecordedStep(stage, recording, cut(recording))
    making = RecordedStep(stage, recording, cut(recording))
    monkeypatch.setattr(making, "_made_static", lambda _: None)
    return staying, making


@pytest.mark.parametrize("cut", [as_short_as_can_be, as_they_are])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "name", ["llama_wide_heads", "llama_tied", "qwen3", "gemma2", "gemma3", "phi3", "gpt2", "olmo2", "granite"]
)
def test_the_same_bits_with_one_session_and_with_several(
    checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype, cut: Cut
) -> None:
    stage = checkpoint(name).load(WHOLE, dtype)
    for sizes in ((1,), (5, 7, 6, 5)):
        staying, making = steps_of(stage, recorded(stage, sizes[0]), monkeypatch, cut)
        for n_sessions in sizes:
            for got, right in zip(
                answers(stage, staying, n_sessions), answers(stage, making, n_sessions), strict=True
            ):
                assert torch.equal(got, right)
            assert staying._static[n_sessions] is not None


@pytest.mark.parametrize("held_as", ["bfloat16", "int8"])
@pytest.mark.parametrize("n_sessions", [1, 5])
def test_caches_that_keep_something_else_are_attended_to_as_ever(
    checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch, n_sessions: int, held_as: KvPrecision
) -> None:
    stage = checkpoint("llama_wide_heads").load(WHOLE, torch.float32)
    staying, making = steps_of(stage, recorded(stage, n_sessions), monkeypatch)
    for caches in (held_as, None, held_as):
        got, right = (answers(stage, step, n_sessions, caches) for step in (staying, making))
        assert all(map(torch.equal, got, right))


def test_what_was_given_is_not_overwritten_by_the_next_step(checkpoint: Checkpoints) -> None:
    stage = checkpoint("llama_wide_heads").load(WHOLE, torch.float32)
    recording = recorded(stage, 1)
    found = answers(stage, RecordedStep(stage, recording, as_short_as_can_be(recording)), 1)
    assert not any(torch.equal(one, other) for one, other in pairwise(found))


def test_a_step_that_cant_stay_runs_all_the_same(checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = checkpoint("llama_wide_heads").load(WHOLE, torch.float32)
    recording = recorded(stage, 1)
    right = answers(stage, RecordedStep(stage, recording, as_they_are(recording)), 1)

    def fails(*_: object) -> StaticStep:
        raise MemoryError("none left")

    monkeypatch.setattr(compiled_step, "StaticStep", fails)
    step = RecordedStep(stage, recording, as_they_are(recording))
    assert all(map(torch.equal, answers(stage, step, 1), right))
    assert step._static == {1: None}


def piece_of(
    operations: Callable[..., Any], takes: Sequence[int] = (), gives: Sequence[int] = (), n_inputs: int = 1
) -> Piece:
    make = torch.fx.experimental.proxy_tensor.make_fx
    module: fx.GraphModule = make(operations)(*[torch.zeros(3) for _ in range(n_inputs)])
    return Piece(run=module.forward, takes=tuple(takes), weights=(), gives=tuple(gives))


def pieces_of(pieces: Sequence[Piece], holes: Sequence[Hole] = ()) -> Pieces:
    return Pieces(pieces=tuple(pieces), holes=tuple(holes), result=0, n_values=20, n_kinds=1)


def test_operations_that_write_into_what_they_are_given_are_not_called_again() -> None:
    assert can_stay(pieces_of([piece_of(lambda x: (x + 1,))]))
    assert not can_stay(pieces_of([piece_of(lambda x: (x.add_(1),))]))
    assert not can_stay(pieces_of([Piece(run=len, takes=(), weights=(), gives=())]))


def test_what_is_used_later_than_by_the_next_piece_keeps_its_place() -> None:
    pieces = [
        piece_of(lambda x: (x,), takes=(0,), gives=(3, 4)),
        piece_of(lambda x: (x,), takes=(3,), gives=(6,)),
        piece_of(lambda x: (x,), takes=(6,), gives=(8,)),
        piece_of(lambda x: (x,), takes=(8, 4), gives=()),
    ]
    holes = [Hole(states=(3, 3, 3), computed=(), gives=5), Hole(states=(6, 6, 6), computed=(), gives=7)]
    holes.append(Hole(states=(8, 7, 8), computed=(), gives=9))
    assert _used_later(pieces_of(pieces, holes)) == {0}
    holes[2] = Hole(states=(8, 5, 8), computed=(), gives=9)
    pieces[3] = piece_of(lambda x: (x,), takes=(8,), gives=())
    assert _used_later(pieces_of(pieces, holes)) == {0}
    holes[2] = Hole(states=(8, 8, 8), computed=(), gives=9)
    assert _used_later(pieces_of(pieces, holes)) == set()


def test_places_serve_fewer_sessions_too() -> None:
    places = Places(8)
    many = places.of((1,), torch.arange(40).view(8, 5), 8)
    few = places.of((1,), torch.arange(10).view(5, 2).t(), 2)
    assert few.tolist() == torch.arange(10).view(5, 2).t().tolist()
    assert few.stride() == (1, 2)
    assert few.data_ptr() == many.data_ptr()
    assert places.of((1,), torch.zeros(8, 5), 8).data_ptr() != many.data_ptr()
