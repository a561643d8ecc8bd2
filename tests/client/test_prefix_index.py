from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from client.prefix_index import MIN_SHARED, PrefixIndex, n_common
from protocol.ids import Revision, SessionId
from protocol.messages import SharedPrefix

REVISION = Revision("a" * 64)
SYSTEM = tuple(range(100, 140))
IDS = st.lists(st.integers(0, 2), max_size=20).map(tuple)


def session(number: int) -> SessionId:
    return SessionId(f"s{number}")


@given(IDS, IDS)
def test_common_is_the_longest_beginning_of_both(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    n = n_common(one, other)
    assert one[:n] == other[:n]
    assert one[n : n + 1] != other[n : n + 1] or n == len(one) == len(other)


def test_the_session_with_most_in_common_is_named() -> None:
    index = PrefixIndex()
    index.add(REVISION, session(1), (*SYSTEM, *range(20)))
    index.add(REVISION, session(2), (*SYSTEM, *range(50, 70)))
    prompt = (*SYSTEM, *range(50, 60), 7)
    assert index.shared(REVISION, prompt) == SharedPrefix(session_id=session(2), n_positions=50)
    assert index.shared(REVISION, (*SYSTEM, *range(20))) == SharedPrefix(session_id=session(1), n_positions=59)
    assert index.shared(Revision("b" * 64), prompt) is None
    assert index.shared(REVISION, prompt[: MIN_SHARED + 1]) is not None
    assert index.shared(REVISION, prompt[:MIN_SHARED]) is None, "the last token is run anyway"


def test_a_longer_text_takes_the_place_of_its_beginning() -> None:
    index = PrefixIndex()
    first = (*SYSTEM, *range(20))
    index.add(REVISION, session(1), first)
    index.add(REVISION, session(2), (*first, 7, 8, 9))
    index.forget(session(2))
    assert index.shared(REVISION, (*first, 1)) is None
    index.forget(session(2))


def test_what_was_used_longest_ago_is_forgotten_first() -> None:
    texts = [(number, *range(MIN_SHARED)) for number in range(4)]
    for bounds in ({"max_sessions": 2}, {"max_tokens": 2 * len(texts[0])}):
        index = PrefixIndex(**bounds)
        for number in (0, 1):
            index.add(REVISION, session(number), texts[number])
        assert index.shared(REVISION, (*texts[0], 1)) is not None
        index.add(REVISION, session(2), texts[2])
        found = [index.shared(REVISION, (*text, 1)) is not None for text in texts]
        assert found == [True, False, True, False]
        index.add(REVISION, session(3), texts[3] * 10)
        assert (index.shared(REVISION, (*texts[3], 1)) is None) == ("max_tokens" in bounds), "too long to remember"
