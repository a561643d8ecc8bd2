from __future__ import annotations

import time
from typing import Any

import pytest

from protocol.errors import ConflictError, ContextExceededError, ProtocolError
from protocol.ids import SessionId
from protocol.messages import SamplingParams, Token
from worker.steps import SampledToken
from worker.tail import Attachment, Tail

SESSION = SessionId("s")


class Outlet:
    """Where tokens go: the part of a connection that a tail uses."""

    def __init__(self) -> None:
        self.posted: list[Token] = []

    def post(self, message: Token) -> None:
        self.posted.append(message)


def attached(max_tokens: int = 3, n_prompt: int = 2, max_positions: int = 10) -> tuple[Tail, Outlet]:
    tail, outlet = Tail(SESSION, max_positions), Outlet()
    connection: Any = outlet
    sampling = SamplingParams(max_tokens=max_tokens)
    tail.attach(Attachment(connection=connection, sampling=sampling, prompt_token_ids=(5,) * n_prompt))
    return tail, outlet


def sampled(position: int, *, is_stop: bool = False) -> SampledToken:
    return SampledToken(token_id=40 + position, position=position, is_stop=is_stop)


def test_the_last_token_carries_its_reason_and_no_other_does() -> None:
    tail, outlet = attached()
    for position in (2, 3, 4):
        token = sampled(position)
        assert tail.take([token], ()) == [token]
        assert tail.finish_reason == ("length" if position == 4 else None)
        tail.stream([token])
    assert [(t.index, t.token_id, t.finish_reason) for t in outlet.posted] == [
        (0, 42, None),
        (1, 43, None),
        (2, 44, "length"),
    ]


def test_a_text_that_was_to_be_run_anew_before_it_began_is_refused_with_numbers() -> None:
    outlet = Outlet()
    connection: Any = outlet
    tail = Tail(SESSION, 20, anew_after=4)
    sampling = SamplingParams(max_tokens=9)
    tail.attach(Attachment(connection=connection, sampling=sampling, prompt_token_ids=(5,) * 7))
    with pytest.raises(ProtocolError, match="position 7 of a text that is run anew after 4"):
        tail.take([sampled(7)], ())


def test_a_text_that_is_to_be_run_anew_ends_its_session_with_the_token_that_it_cannot_run() -> None:
    outlet = Outlet()
    connection: Any = outlet
    tail = Tail(SESSION, 20, anew_after=4)
    sampling = SamplingParams(max_tokens=9)
    tail.attach(Attachment(connection=connection, sampling=sampling, prompt_token_ids=(5, 5)))
    tail.stream(tail.take([sampled(2)], ()))
    assert tail.finish_reason is None
    tail.stream(tail.take([sampled(3), sampled(4), sampled(5)], (43, 44)))
    assert (tail.finish_reason, tail.n_sent) == ("length", 3)
    assert [(t.token_id, t.finish_reason, t.is_outgrown) for t in outlet.posted] == [
        (42, None, False),
        (43, None, False),
        (44, "length", True),
    ]


@pytest.mark.parametrize("max_tokens", [3, 9])
def test_an_answer_that_is_over_is_not_run_anew(max_tokens: int) -> None:
    outlet = Outlet()
    connection: Any = outlet
    tail = Tail(SESSION, 20, anew_after=4)
    sampling = SamplingParams(max_tokens=max_tokens)
    tail.attach(Attachment(connection=connection, sampling=sampling, prompt_token_ids=(5, 5)))
    tail.stream(tail.take([sampled(2), sampled(3), sampled(4, is_stop=max_tokens == 9)], (42, 43)))
    assert outlet.posted[-1].finish_reason == ("length" if max_tokens == 3 else "stop")
    assert not outlet.posted[-1].is_outgrown


def test_the_pace_counts_the_tokens_after_the_first_ones() -> None:
    tail, _ = attached(max_tokens=6)
    assert tail.pace == (None, None)
    began_s = time.perf_counter()
    tail.stream(tail.take([sampled(2), sampled(3)], (42,)))
    first_token_s, s_per_token = tail.pace
    assert first_token_s is not None
    assert s_per_token is None, "two came at once, and none since"
    for position in (4, 5):
        tail.stream(tail.take([sampled(position)], ()))
    assert tail.pace[0] == first_token_s
    assert tail.pace[1] is not None
    assert 0.0 < 2 * tail.pace[1] <= time.perf_counter() - began_s


def test_a_stop_token_is_streamed_with_reason_stop_even_as_the_last_allowed() -> None:
    tail, outlet = attached(max_tokens=1)
    token = sampled(2, is_stop=True)
    tail.stream(tail.take([token], ()))
    assert outlet.posted[0].finish_reason == "stop"
    assert (tail.n_sent, tail.finish_reason, tail.n_prompt_tokens) == (1, "stop", 2)


def test_the_answer_ends_where_the_positions_end() -> None:
    tail, _ = attached(max_tokens=100, n_prompt=9)
    tail.take([sampled(9)], ())
    assert tail.finish_reason == "length"


@pytest.mark.parametrize(
    ("max_tokens", "stop_at", "expected"),
    [
        (9, None, [(42, None), (43, None), (44, None)]),
        (3, None, [(42, None), (43, None), (44, "length")]),
        (2, None, [(42, None), (43, "length")]),
        (9, 4, [(42, None), (43, None), (44, "stop")]),
        (3, 4, [(42, None), (43, None), (44, "stop")]),
    ],
)
def test_tokens_that_come_together_are_streamed_one_by_one_as_far_as_there_is_room(
    max_tokens: int, stop_at: int | None, expected: list[tuple[int, str | None]]
) -> None:
    tail, outlet = attached(max_tokens=max_tokens)
    tokens = [sampled(position, is_stop=position == stop_at) for position in (2, 3, 4)]
    tail.stream(tail.take(tokens, (42, 43, 50)))
    assert [(token.token_id, token.finish_reason) for token in outlet.posted] == expected
    counts = [(token.n_drafted, token.n_accepted) for token in outlet.posted]
    assert counts == [(3, 2)] + [(0, 0)] * (len(expected) - 1)
    assert [token.index for token in outlet.posted] == list(range(len(expected)))
    assert tail.n_sent == len(expected)


def test_a_token_for_another_position_means_different_prompts() -> None:
    tail, _ = attached()
    with pytest.raises(ProtocolError, match="same prompt"):
        tail.take([sampled(3)], ())


def test_one_client_only_and_room_for_an_answer() -> None:
    tail, outlet = attached()
    connection: Any = outlet
    again = Attachment(connection=connection, sampling=SamplingParams(max_tokens=1), prompt_token_ids=(1,))
    with pytest.raises(ConflictError):
        tail.attach(again)
    with pytest.raises(ContextExceededError):
        attached(n_prompt=10)
    assert Tail(SESSION, 10).client is None
    assert Tail(SESSION, 10).n_prompt_tokens == 0
