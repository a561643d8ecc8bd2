from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.decoding import TextStream
from client.showing import Shower
from protocol.ids import SessionId
from protocol.messages import Token
from tests.support.tiny_tokenizer import ids_of, tiny_tokenizer

SESSION = SessionId("s-1")


def tokens_of(ids: list[int]) -> list[Token]:
    return [
        Token(session_id=SESSION, index=i, token_id=token_id, finish_reason="length" if i == len(ids) - 1 else None)
        for i, token_id in enumerate(ids)
    ]


@given(st.text(st.sampled_from("abc \N{EURO SIGN}\N{ROCKET}\n"), min_size=1, max_size=30))
def test_the_pieces_together_are_the_text(text: str) -> None:
    shower = Shower(TextStream(tiny_tokenizer()), ("zzz",))
    assert "".join(shower.piece(token).text for token in tokens_of(ids_of(text))) == text


@pytest.mark.parametrize(("text", "shown"), [("one END two", "one "), ("one EN", "one EN"), ("END", "")])
def test_a_stop_string_ends_what_is_shown(text: str, shown: str) -> None:
    shower = Shower(TextStream(tiny_tokenizer()), ("END",))
    pieces = []
    for token in tokens_of(ids_of(text)):
        pieces.append(shower.piece(token).text)
        if shower.is_stopped:
            break
    assert ("".join(pieces), shower.is_stopped) == (shown, "END" in text)


def test_without_a_tokenizer_there_are_ids_alone() -> None:
    shower = Shower(None, ("END",))
    assert [shower.piece(token).text for token in tokens_of([7, 8])] == ["", ""]


def test_log_probabilities_are_the_tokens() -> None:
    token = Token(session_id=SESSION, index=0, token_id=9, logprob=-0.5, top_logprobs=((9, -0.5),))
    for text in (TextStream(tiny_tokenizer()), None):
        piece = Shower(text, ()).piece(token)
        assert (piece.token_id, piece.logprob, piece.top_logprobs) == (9, -0.5, ((9, -0.5),))
