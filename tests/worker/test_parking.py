from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.ids import BlockRange, Revision, SessionId
from protocol.messages import SharedPrefix
from worker.history import History
from worker.parking import MAX_PARKED, Parked, ParkingLot, TakenOver, n_rows_held
from worker.steps import SessionSpec, SpanKey
from worker.text_lengths import LengthRule, TextLengths

SPAN = SpanKey(revision=Revision("r" * 64), blocks=BlockRange(0, 4), precision="float32")
OTHER_SPAN = replace(SPAN, precision="bfloat16")


def spec(name: str, **changes: object) -> SessionSpec:
    base = SessionSpec(session_id=SessionId(name), span=SPAN, blocks=BlockRange(1, 3), n_positions=40)
    return replace(base, **changes)  # type: ignore[arg-type]


def parked(name: str, n_bytes: int = 10, until_s: float = 30.0, n_run: int = 20, **changes: object) -> Parked:
    history = History()
    history.n_settled = n_run
    return Parked(spec=spec(name, **changes), n_bytes=n_bytes, until_s=until_s, history=history)


def names(some: tuple[Parked, ...]) -> list[str]:
    return [one.spec.session_id for one in some]


def lot(*some: Parked) -> ParkingLot:
    return ParkingLot(some)


def test_only_who_goes_on_from_it_on_the_same_blocks_finds_what_was_left() -> None:
    left = lot(parked("a"), parked("b"))
    new = spec("new", continues=SessionId("b"))
    found = left.left_for(new)
    assert found is not None
    assert found.spec.session_id == "b"
    for change in (
        {"continues": None},
        {"continues": SessionId("c")},
        {"span": OTHER_SPAN},
        {"blocks": BlockRange(1, 4)},
    ):
        assert left.left_for(replace(new, **change)) is None  # type: ignore[arg-type]
    also = replace(new, prefix=SharedPrefix(session_id=SessionId("a"), n_positions=5))
    assert left.left_for(also) is found, "what failed has more of the text"
    assert left.without(SessionId("b")).left_for(also) is left.parked[0]


@pytest.mark.parametrize(
    ("n_prompt", "n_new_prompt", "is_found"),
    [(9, 16, True), (9, 17, False), (17, 30, True), (17, 9, False), (0, 0, True), (0, 9, False), (9, 0, False)],
)
def test_what_was_rotated_as_in_a_text_of_another_length_is_of_no_use(
    n_prompt: int, n_new_prompt: int, *, is_found: bool
) -> None:
    left = lot(parked("a", n_prompt=n_prompt))
    new = spec("new", n_prompt=n_new_prompt, prefix=SharedPrefix(session_id=SessionId("a"), n_positions=5))
    lengths = TextLengths((LengthRule(16, is_long_alike=True),))
    assert (left.left_for(new, lengths) is not None) == is_found
    assert left.left_for(new) is not None, "other models tell no lengths apart"


@pytest.mark.parametrize(
    ("n_shared", "is_replaced"),
    [(20, True), (12, True), (11, False)],
    ids=["all of it", "nearly all", "a part"],
)
def test_what_goes_into_a_longer_text_gives_way_and_what_others_share_stays(
    n_shared: int, is_replaced: bool
) -> None:
    left = parked("a", n_run=20)
    prefix = SharedPrefix(session_id=SessionId("a"), n_positions=n_shared)
    new = spec("new", prefix=prefix)
    assert left.is_replaced_by(new) is is_replaced
    assert left.n_shared(new) == n_shared
    assert left.n_shared(replace(new, prefix=SharedPrefix(session_id=SessionId("a"), n_positions=99))) == 20
    failed = replace(new, continues=SessionId("a"))
    assert (left.is_replaced_by(failed), left.n_shared(failed)) == (True, 20)


@given(st.lists(st.integers(1, 50), max_size=8), st.integers(-10, 300))
def test_the_oldest_go_first_and_no_more_than_need_to(sizes: list[int], n_missing: int) -> None:
    left = lot(*(parked(f"s{index}", size) for index, size in enumerate(sizes)))
    going = left.in_the_way(n_missing)
    assert going == left.parked[: len(going)]
    n_freed = sum(one.n_bytes for one in going)
    assert n_freed >= min(n_missing, left.n_bytes)
    if going:
        assert n_freed - going[-1].n_bytes < n_missing


def test_what_is_parked_goes_with_its_time_and_with_its_span() -> None:
    left = lot(parked("a", until_s=1.0), parked("b", until_s=3.0), parked("c", until_s=2.0, span=OTHER_SPAN))
    assert names(left.expired(2.0)) == ["a", "c"]
    assert names(left.of_span(OTHER_SPAN)) == ["c"]
    assert names(left.without(SessionId("b")).parked) == ["a", "c"]


def test_the_lot_is_bounded() -> None:
    left = ParkingLot()
    for index in range(MAX_PARKED + 2):
        left = left.with_last(parked(f"s{index}"))
    assert names(left.surplus()) == ["s0", "s1"]
    used = left.with_last(left.parked[0])
    assert names(used.surplus()) == ["s1", "s2"]
    assert used.n_bytes == left.n_bytes


def test_held_is_what_every_part_of_it_agrees_on() -> None:
    history = History()
    history.token_ids = [1] * 7
    history.n_states = 5
    history.n_settled = 9
    taken = TakenOver(n_cached=9, history=history)
    assert taken.n_held(is_head=True, is_tail=False) == 5
    assert taken.n_held(is_head=True, is_tail=True) == 7
    assert taken.n_held(is_head=False, is_tail=True) == 9
    history.n_settled = 3
    assert taken.n_held(is_head=True, is_tail=False) == 3


@given(st.integers(0, 50), st.integers(1, 20), st.integers(0, 80), st.booleans())
def test_held_rows_come_first_and_the_last_row_of_a_prompt_is_always_run(
    position: int, n_tokens: int, n_held: int, is_last: bool
) -> None:
    n_rows = n_rows_held(position, n_tokens, n_held, is_last=is_last)
    assert 0 <= n_rows <= (n_tokens - 1 if is_last else n_tokens)
    assert n_rows == 0 or position + n_rows <= n_held
    n_most = n_tokens - 1 if is_last else n_tokens
    assert n_rows == n_most or position + n_rows >= n_held
