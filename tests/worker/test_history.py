from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from worker.history import History


@given(st.lists(st.integers(0, 2), max_size=8), st.integers(0, 8), st.lists(st.integers(0, 2), max_size=8))
def test_ids_are_kept_as_far_as_they_are_the_same(old: list[int], position: int, new: list[int]) -> None:
    position = min(position, len(old))
    history = History()
    history.put_ids(0, old)
    n_known = history.n_known(position, new)
    assert old[position : position + n_known] == new[:n_known]
    assert n_known == len(new) or old[position + n_known : position + n_known + 1] != [new[n_known]]
    history.put_ids(position, new)
    if n_known == len(new):
        assert history.token_ids == old
    else:
        assert history.token_ids == old[:position] + new


@given(
    st.lists(st.one_of(st.just(1), st.integers(1, 5)), min_size=1, max_size=150),
    st.data(),
)
def test_states_come_back_as_they_were_however_they_came(lengths: list[int], data: st.DataObject) -> None:
    n_all = sum(lengths)
    rows = torch.arange(n_all * 2, dtype=torch.float32).reshape(n_all, 2)
    history = History()
    for part in rows.split(lengths):
        history.add_states(part)
    assert history.n_states == n_all
    start = data.draw(st.integers(0, n_all - 1))
    end = data.draw(st.integers(start + 1, n_all))
    assert torch.equal(history.states(start, end), rows[start:end])
    history.forget_states(start)
    assert history.n_states == start
    history.add_states(rows[start:])
    assert torch.equal(history.states(0, n_all), rows)
    history.forget_states(n_all)
    assert history.n_states == n_all


def test_tokens_of_a_long_answer_dont_become_as_many_tensors() -> None:
    history = History()
    for index in range(1000):
        history.add_states(torch.full((1, 2), float(index)))
    assert len(history._parts) < 100
    assert history.states(999, 1000).tolist() == [[999.0, 999.0]]


def test_a_beginning_is_independent_of_what_it_was_taken_from() -> None:
    history = History()
    history.put_ids(0, [1, 2, 3, 4])
    for row in range(4):
        history.add_states(torch.full((1, 2), float(row)))
    history.n_settled = 4
    beginning = history.beginning(3)
    beginning.settle()
    history.forget_states(1)
    assert beginning.token_ids == [1, 2, 3]
    assert (beginning.n_states, beginning.n_settled) == (3, 3)
    assert beginning.states(0, 3)[:, 0].tolist() == [0.0, 1.0, 2.0]
    longer = history.beginning(9)
    longer.settle()
    assert (longer.token_ids, longer.n_states, longer.n_settled) == ([1, 2, 3, 4], 1, 4)
