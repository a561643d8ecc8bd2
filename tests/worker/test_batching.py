from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protocol.ids import SessionId
from worker.batching import ReadyStep, next_batch

READY = st.lists(
    st.builds(
        ReadyStep, st.sampled_from([SessionId(c) for c in "abcdefgh"]), st.sampled_from([1, 1, 2, 16, 64, 500])
    ),
    max_size=12,
)
BUDGET = st.integers(1, 600)


def steps(*pairs: tuple[str, int]) -> list[ReadyStep]:
    return [ReadyStep(SessionId(name), n_tokens) for name, n_tokens in pairs]


def test_decode_goes_first_and_prefill_fills_up() -> None:
    ready = steps(("a", 100), ("b", 1), ("c", 100), ("d", 1))
    assert next_batch(ready, 202) == [1, 3, 0, 2]
    assert next_batch(ready, 201) == [1, 3, 0]


def test_a_chunk_over_the_budget_still_runs() -> None:
    assert next_batch(steps(("a", 1), ("b", 900)), 100) == [0, 1]


def test_a_small_chunk_does_not_overtake_a_large_one() -> None:
    assert next_batch(steps(("a", 10), ("b", 95), ("c", 5)), 100) == [0]


def test_a_session_has_its_earliest_step_only() -> None:
    assert next_batch(steps(("a", 64), ("a", 1), ("b", 1)), 512) == [2, 0]


@given(READY, BUDGET)
def test_every_batch_keeps_the_rules(ready: list[ReadyStep], budget: int) -> None:
    chosen = next_batch(ready, budget)
    sessions = [ready[index].session_id for index in chosen]
    earliest = {step.session_id: index for index, step in reversed(list(enumerate(ready)))}
    assert bool(chosen) == bool(ready)
    assert len(set(sessions)) == len(sessions)
    assert all(earliest[ready[index].session_id] == index for index in chosen)
    assert {i for i in earliest.values() if ready[i].is_decode} <= set(chosen)
    prefill = [ready[index].n_tokens for index in chosen if not ready[index].is_decode]
    assert len(prefill) <= 1 or sum(ready[index].n_tokens for index in chosen) <= budget


@given(READY, BUDGET)
def test_nothing_starves(ready: list[ReadyStep], budget: int) -> None:
    left = list(ready)
    for _ in range(len(ready)):
        taken = set(next_batch(left, budget))
        left = [step for index, step in enumerate(left) if index not in taken]
    assert left == []


@given(READY, BUDGET)
def test_the_oldest_step_always_runs_unless_only_decode_is_older(ready: list[ReadyStep], budget: int) -> None:
    assert not ready or 0 in next_batch(ready, budget)
