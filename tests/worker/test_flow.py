from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import BrigadeError, ContextExceededError, ProtocolError, StaleEpochError
from protocol.messages import STEP_CREDIT
from worker.flow import Arrivals, check_token_id, chunks


@given(st.integers(0, 1000), st.integers(1, 500), st.integers(1, 200))
def test_chunks_cover_the_positions_in_order_and_none_is_too_long(
    position: int, n_tokens: int, chunk_tokens: int
) -> None:
    pieces = chunks(position, n_tokens, chunk_tokens)
    assert [at for piece in pieces for at in piece] == list(range(position, position + n_tokens))
    assert all(1 <= len(piece) <= chunk_tokens for piece in pieces)
    assert len(pieces) == -(-n_tokens // chunk_tokens)
    assert max(map(len, pieces)) - min(map(len, pieces)) <= 1


@given(st.lists(st.booleans(), max_size=60))
def test_a_sender_that_minds_its_credit_is_never_refused_nor_stuck(is_sending: list[bool]) -> None:
    arrivals = Arrivals(max_positions=1000, is_fed=False)
    credit, waiting, position = STEP_CREDIT, 0, 0
    for sends in is_sending:
        if sends and credit:
            arrivals.take_step(position, 1, is_last=True)
            credit, waiting, position = credit - 1, waiting + 1, position + 1
        elif waiting:
            waiting -= 1
            credit += arrivals.step_consumed()
    while waiting:
        waiting -= 1
        credit += arrivals.step_consumed()
    assert 0 < credit <= STEP_CREDIT


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 4), st.booleans()), max_size=12))
def test_what_is_taken_has_no_gaps_and_stays_in_the_budget(steps: list[tuple[int, int, bool]]) -> None:
    arrivals = Arrivals(max_positions=10, is_fed=True)
    taken: list[int] = []
    for position, n_tokens, is_last in steps:
        try:
            arrivals.take_step(position, n_tokens, is_last=is_last)
        except BrigadeError:
            continue
        taken += range(position, position + n_tokens)
    assert taken == list(range(len(taken)))
    assert len(taken) <= 10


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 5), st.integers(0, 4)), max_size=20))
def test_only_guesses_are_taken_back(steps: list[tuple[int, int, int]]) -> None:
    arrivals = Arrivals(max_positions=12, is_fed=False)
    settled = taken = 0
    for position, n_tokens, n_drafts in steps:
        try:
            arrivals.take_step(position, n_tokens, is_last=True, n_drafts=min(n_drafts, n_tokens - 1))
        except BrigadeError:
            continue
        arrivals.step_consumed()
        assert settled <= position <= taken
        taken = position + n_tokens
        settled = taken - min(n_drafts, n_tokens - 1)
    assert arrivals.next_position == taken <= 12


def test_a_head_is_fed_where_a_guess_was_or_after_all_and_nowhere_else() -> None:
    def drafted() -> Arrivals:
        arrivals = Arrivals(max_positions=20, is_fed=True)
        arrivals.take_step(0, 4, is_last=True)
        arrivals.take_fed(4)
        arrivals.drafted(3)
        arrivals.fed_consumed()
        return arrivals

    for position in (5, 6, 7, 8):
        arrivals = drafted()
        arrivals.take_fed(position)
        assert (arrivals.next_position, arrivals.n_drafts) == (position + 1, 0)
        with pytest.raises(StaleEpochError):
            arrivals.take_fed(position)
    for position in (0, 4, 9):
        with pytest.raises(StaleEpochError, match="next is 8"):
            drafted().take_fed(position)


def test_a_client_makes_no_guesses() -> None:
    with pytest.raises(ProtocolError, match="2 drafts"):
        Arrivals(max_positions=9, is_fed=True).take_step(0, 3, is_last=True, n_drafts=2)


def test_a_step_beyond_the_credit_is_refused() -> None:
    arrivals = Arrivals(max_positions=100, is_fed=False)
    for position in range(STEP_CREDIT):
        arrivals.take_step(position, 1, is_last=False)
    with pytest.raises(ProtocolError, match="credit of 4"):
        arrivals.take_step(STEP_CREDIT, 1, is_last=False)


@pytest.mark.parametrize("position", [0, 1, 4, 99])
def test_replayed_and_early_steps_are_stale(position: int) -> None:
    arrivals = Arrivals(max_positions=100, is_fed=False)
    arrivals.take_step(0, 2, is_last=False)
    with pytest.raises(StaleEpochError, match="next is 2"):
        arrivals.take_step(position, 1, is_last=False)


def test_positions_beyond_the_ticket_are_refused() -> None:
    arrivals = Arrivals(max_positions=4, is_fed=False)
    with pytest.raises(ContextExceededError):
        arrivals.take_step(0, 5, is_last=False)
    arrivals.take_step(0, 4, is_last=False)


def test_tokens_are_fed_to_heads_after_the_prompt_only() -> None:
    with pytest.raises(ProtocolError):
        Arrivals(max_positions=9, is_fed=False).take_fed(0)
    arrivals = Arrivals(max_positions=9, is_fed=True)
    with pytest.raises(ProtocolError):
        arrivals.take_fed(0)
    arrivals.take_step(0, 2, is_last=True)
    arrivals.take_fed(2)
    with pytest.raises(StaleEpochError):
        arrivals.take_fed(2)
    with pytest.raises(ProtocolError, match="prompt is complete"):
        arrivals.take_step(3, 1, is_last=True)
    for position in range(3, 2 + STEP_CREDIT):
        arrivals.take_fed(position)
    with pytest.raises(ProtocolError):
        arrivals.take_fed(2 + STEP_CREDIT)
    arrivals.fed_consumed()
    arrivals.take_fed(2 + STEP_CREDIT)


@pytest.mark.parametrize("token_id", [-1, 2**31, 2**64])
def test_token_ids_that_no_vocabulary_has_are_refused(token_id: int) -> None:
    check_token_id(2**31 - 1)
    with pytest.raises(ProtocolError, match="vocabulary"):
        check_token_id(token_id)
