from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.ids import SessionId
from worker.batching import GroupSize, ReadyStep, gather_s, gather_until, group_size, next_batch

READY = st.lists(
    st.builds(
        ReadyStep, st.sampled_from([SessionId(c) for c in "abcdefgh"]), st.sampled_from([1, 1, 2, 16, 64, 500])
    ),
    max_size=12,
)
BUDGET = st.integers(1, 600)
SIZE = st.integers(1, 4).map(lambda most: GroupSize(least=most - 1, most=most))
ALL = GroupSize(least=16, most=16)


def steps(*pairs: tuple[str, int]) -> list[ReadyStep]:
    return [ReadyStep(SessionId(name), n_tokens) for name, n_tokens in pairs]


def test_decode_goes_first_and_prefill_fills_up() -> None:
    ready = steps(("a", 100), ("b", 1), ("c", 100), ("d", 1))
    assert next_batch(ready, 202, ALL) == [1, 3, 0, 2]
    assert next_batch(ready, 201, ALL) == [1, 3, 0]


def test_a_chunk_over_the_budget_still_runs() -> None:
    assert next_batch(steps(("a", 1), ("b", 900)), 100, ALL) == [0, 1]


def test_a_small_chunk_does_not_overtake_a_large_one() -> None:
    assert next_batch(steps(("a", 10), ("b", 95), ("c", 5)), 100, ALL) == [0]


def test_a_session_has_its_earliest_step_only() -> None:
    assert next_batch(steps(("a", 64), ("a", 1), ("b", 1)), 512, ALL) == [2, 0]


def test_guesses_go_with_the_token_that_they_follow() -> None:
    ready = [ReadyStep(SessionId("a"), 4, n_drafts=3), ReadyStep(SessionId("b"), 4)]
    assert [step.is_decode for step in ready] == [True, False]


@pytest.mark.parametrize(
    ("n_hops", "least", "most"), [([], 0, 1), ([3], 0, 1), ([1] * 5, 5, 5), ([2] * 8, 4, 4), ([1, 2, 1], 1, 2)]
)
def test_the_sessions_that_decode_form_as_many_groups_as_there_are_hops(
    n_hops: list[int], least: int, most: int
) -> None:
    assert group_size(n_hops) == GroupSize(least=least, most=most)


def test_a_group_takes_the_oldest_decode_steps() -> None:
    assert next_batch(steps(("d", 1), ("a", 1), ("c", 1)), 512, GroupSize(least=2, most=2)) == [0, 1]


@pytest.mark.parametrize(
    ("ready", "waits"),
    [
        (steps(("a", 1)), True),
        (steps(("a", 1), ("b", 1), ("c", 1)), False),  # the group is there
        (steps(("a", 1), ("b", 64)), False),  # a prompt is something to do
    ],
)
def test_only_a_group_that_lacks_somebody_waits_and_not_for_long(ready: list[ReadyStep], waits: bool) -> None:
    waited_s = gather_s(ready, GroupSize(least=3, most=4), 0.02)
    assert (0 < waited_s <= 0.002) == waits
    assert gather_s(ready, GroupSize(least=0, most=1), 0.02) == 0


def test_a_group_waits_while_one_comes_after_the_other_and_half_a_step_at_most() -> None:
    came_s, until_s = 7.0, gather_until(7.0, 7.0, 0.002, 0.02)
    n_came = 0
    while came_s < until_s:
        came_s, n_came = came_s + 0.0015, n_came + 1
        until_s = gather_until(7.0, came_s, 0.002, 0.02)
    assert until_s == pytest.approx(7.01)
    assert n_came == 7
    assert gather_until(7.0, 7.003, 0.002, 0.02) == pytest.approx(7.005)


@given(READY, BUDGET, SIZE)
def test_every_batch_keeps_the_rules(ready: list[ReadyStep], budget: int, size: GroupSize) -> None:
    chosen = next_batch(ready, budget, size)
    sessions = [ready[index].session_id for index in chosen]
    earliest = {step.session_id: index for index, step in reversed(list(enumerate(ready)))}
    assert bool(chosen) == bool(ready)
    assert len(set(sessions)) == len(sessions)
    assert all(earliest[ready[index].session_id] == index for index in chosen)
    decode = sorted(i for i in earliest.values() if ready[i].is_decode)
    n_alone = size.most if len(ready) > 1 else 1
    assert [index for index in chosen if ready[index].is_decode] == decode[:n_alone]
    prefill = [ready[index].n_tokens for index in chosen if not ready[index].is_decode]
    assert len(prefill) <= 1 or sum(ready[index].n_tokens for index in chosen) <= budget


@given(READY, BUDGET, SIZE)
def test_nothing_starves(ready: list[ReadyStep], budget: int, size: GroupSize) -> None:
    left = list(ready)
    for _ in range(len(ready)):
        taken = set(next_batch(left, budget, size))
        left = [step for index, step in enumerate(left) if index not in taken]
    assert left == []


@given(READY, BUDGET, SIZE)
def test_the_oldest_step_always_runs(ready: list[ReadyStep], budget: int, size: GroupSize) -> None:
    assert not ready or 0 in next_batch(ready, budget, size)
