from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.text_lengths import ALL_ALIKE, LengthRule, TextLengths

LENGTHS = st.integers(1, 40)
RULES = st.builds(LengthRule, LENGTHS, st.booleans())
TEXTS = st.builds(TextLengths, st.lists(RULES, max_size=3).map(tuple))
LONGROPE = TextLengths((LengthRule(16, is_long_alike=True),), runs_anew_after=16)
DYNAMIC = TextLengths((LengthRule(16, is_long_alike=False),))


@given(TEXTS, st.integers(0, 40), LENGTHS, LENGTHS)
def test_runs_have_every_position_in_a_text_as_long_as_its_own(
    lengths: TextLengths, position: int, n_tokens: int, n_prompt: int
) -> None:
    runs = list(lengths.runs(position, n_tokens, n_prompt))
    given_to = [n_positions for n, n_positions in runs for _ in range(n)]
    assert len(given_to) == n_tokens
    for number, n_positions in enumerate(given_to, position):
        assert lengths.are_alike(max(n_prompt, number + 1), n_positions)


@given(TEXTS, LENGTHS, LENGTHS, LENGTHS)
def test_prompts_that_are_alike_have_all_positions_that_both_have_rotated_alike(
    lengths: TextLengths, one: int, other: int, n_both: int
) -> None:
    each = [lengths.are_alike(max(one, end), max(other, end)) for end in range(1, n_both + 1)]
    assert each[0] == lengths.are_alike(one, other)
    if each[0]:
        assert all(each)


def test_a_prompt_is_one_run_however_it_is_cut() -> None:
    assert list(LONGROPE.runs(0, 7, 20)) == [(7, 20)]
    assert list(LONGROPE.runs(14, 6, 20)) == [(6, 20)]


def test_an_answer_is_rotated_position_by_position() -> None:
    assert list(LONGROPE.runs(14, 5, 10)) == [(2, 16), (3, 19)]
    assert list(DYNAMIC.runs(14, 5, 10)) == [(2, 16), (1, 17), (1, 18), (1, 19)]
    assert list(DYNAMIC.runs(17, 4, 19)) == [(2, 19), (1, 20), (1, 21)]


def test_what_is_run_at_once_is_one_run_where_no_prompt_is_said() -> None:
    assert list(LONGROPE.runs(10, 10, 0)) == [(10, 20)]


def test_who_doesnt_say_the_prompts_length_has_positions_like_nobody_elses() -> None:
    assert LONGROPE.are_alike(0, 0)
    assert not LONGROPE.are_alike(0, 10)
    assert ALL_ALIKE.are_alike(0, 10)


def test_models_without_such_embeddings_tell_no_lengths_apart() -> None:
    assert list(ALL_ALIKE.runs(3, 9, 5)) == [(9, 12)]
    assert ALL_ALIKE.are_alike(1, 10**6)
    assert ALL_ALIKE.anew_after(10**6) is None


def test_a_text_is_run_anew_once() -> None:
    assert LONGROPE.anew_after(10) == 16
    assert LONGROPE.anew_after(16) == 16
    assert LONGROPE.anew_after(17) is None


def test_nobody_runs_a_text_anew_who_does_not_say_its_prompt() -> None:
    assert LONGROPE.anew_after(0) is None


def test_a_model_may_leave_a_text_as_it_was_rotated() -> None:
    assert DYNAMIC.anew_after(10) is None
