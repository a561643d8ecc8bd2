from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.stopping import Cut, checked_stops, cut
from protocol.errors import InvalidRequestError

texts = st.text(alphabet="ab\n", max_size=30)
stop_lists = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=3)


def shown_of(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    """What a reader sees of text that comes in pieces."""
    shown, held = "", ""
    for piece in pieces:
        found = cut(held + piece, stops)
        shown, held = shown + found.shown, found.held
        if found.is_stopped:
            return shown, True
    return shown + held, False


def test_shows_up_to_the_stop_string() -> None:
    assert cut("one END two", ["END"]) == Cut(shown="one ", held="", is_stopped=True, stop="END")


def test_holds_what_may_become_a_stop_string() -> None:
    assert cut("one E", ["END"]) == Cut(shown="one ", held="E", is_stopped=False)


def test_without_stops_everything_is_shown() -> None:
    assert cut("one", ()) == Cut(shown="one", held="", is_stopped=False)


@given(texts, stop_lists, st.data())
def test_how_the_text_is_cut_into_pieces_changes_nothing(text: str, stops: list[str], data: st.DataObject) -> None:
    ends = sorted(data.draw(st.sets(st.integers(0, len(text)))) | {0, len(text)})
    pieces = [text[start:end] for start, end in itertools.pairwise(ends)]
    assert shown_of(pieces, stops) == shown_of(list(text), stops)


@given(texts, stop_lists)
def test_no_stop_string_is_ever_shown_and_nothing_else_is_lost(text: str, stops: list[str]) -> None:
    shown, is_stopped = shown_of(list(text), stops)
    assert not any(stop in shown for stop in stops)
    assert text.startswith(shown)
    assert is_stopped == any(stop in text for stop in stops)
    assert is_stopped or shown == text


@given(texts, stop_lists)
def test_holds_no_more_than_a_stop_strings_beginning(text: str, stops: list[str]) -> None:
    held = cut(text, stops).held
    assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)


def test_stops_are_checked_and_taken_once() -> None:
    assert checked_stops(["a", "b", "a"]) == ("a", "b")
    for bad in ([""], ["x" * 1001], [str(i) for i in range(17)]):
        with pytest.raises(InvalidRequestError):
            checked_stops(bad)
