from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.policy.audit_probe import N_POSITIONS, N_SUMS, STEPS, Projection
from coordinator.policy.audit_rules import (
    N_ROUNDED,
    N_STRAY,
    Comparison,
    Held,
    Ruling,
    Tolerance,
    allowed_difference,
    compared,
    is_dense,
    outcomes,
    summed_up,
)
from protocol.messages import WeightFormat
from tests.support.tiny_models import TINY_CONFIGS

TIGHT = Tolerance(middle=0.001, stray=0.01)
WITH_EXPERTS = {"qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3"}


def some_answer(seed: int) -> Projection:
    rng = random.Random(seed)
    return tuple(tuple(rng.gauss(0.0, 1.0) for _ in range(N_SUMS)) for _ in range(N_POSITIONS))


def with_rows(answer: Projection, n_rows: int, value: float) -> Projection:
    return tuple((value,) * N_SUMS if i < n_rows else row for i, row in enumerate(answer))


def said(pairs: dict[tuple[str, str], bool]) -> dict[frozenset[str], Comparison]:
    return {
        frozenset(pair): Comparison(one=pair[0], other=pair[1], difference=0.0 if agrees else 1.0, allowed=0.5)
        for pair, agrees in pairs.items()
    }


@given(st.integers(0, 1000))
def test_an_answer_agrees_with_itself_and_with_no_other(seed: int) -> None:
    one, other = some_answer(seed), some_answer(seed + 1)
    for allowed in (TIGHT, replace(TIGHT, n_stray=N_STRAY)):
        assert compared(("a", one), ("b", one), allowed).difference == 0.0
        assert compared(("a", one), ("b", other), allowed).difference > 0.9


@pytest.mark.parametrize("value", [0.0, 9.0, float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("weights", "is_dense", "n_stray"),
    [("float32", True, 0), ("float16", True, N_ROUNDED), ("bfloat16", True, N_ROUNDED), ("int8", True, N_ROUNDED),
     ("bfloat16", False, N_STRAY)],
)  # fmt: skip
def test_a_wrong_step_is_found_if_it_has_more_positions_than_may_stray(
    value: float, weights: WeightFormat, is_dense: bool, n_stray: int
) -> None:
    one = some_answer(1)
    allowed = allowed_difference(Held(weights=weights), Held(weights=weights), 30, is_dense=is_dense)
    assert allowed is not None
    assert n_stray < max(STEPS)
    assert compared(("a", one), ("b", with_rows(one, n_stray, value)), allowed).agrees
    assert not compared(("a", one), ("b", with_rows(one, n_stray + 1, value)), allowed).agrees


def test_many_comparisons_are_said_pair_by_pair_those_that_differ_first() -> None:
    def of(one: str, other: str, difference: float) -> Comparison:
        return Comparison(one=one, other=other, difference=difference, allowed=0.5)

    found = [of("a", "b", 0.9), of("b", "c", 0.0), of("b", "a", 1.2), of("c", "b", 0.1), of("a", "c", 0.9)]
    assert summed_up(found) == (
        "the projections of b and a differ by 1.2, 0.5 allowed (2 of 2 probes); "
        "the projections of a and c differ by 0.9, 0.5 allowed; c and b agree"
    )
    assert summed_up(found[1:2]) == "the projections of b and c differ by 0, 0.5 allowed"
    assert summed_up([]) == ""


def test_small_differences_everywhere_count_where_a_single_one_would_not() -> None:
    one = some_answer(1)
    near = tuple(tuple(value * 1.005 for value in row) for row in one)
    found = compared(("a", one), ("b", near), TIGHT)
    assert (found.agrees, found.allowed) == (False, TIGHT.middle)
    assert found.words() == "the projections of a and b differ by 0.00498, 0.001 allowed"


def test_architectures_with_experts_are_known_as_such() -> None:
    import transformers as hf  # noqa: PLC0415 - takes seconds

    for name, make in TINY_CONFIGS.items():
        class_name = hf.AutoModelForCausalLM._model_mapping[type(make())].__name__
        assert is_dense(class_name) == (name not in WITH_EXPERTS), class_name
    assert not is_dense("SomethingNewForCausalLM")


@given(depths=st.tuples(st.integers(1, 200), st.integers(1, 200)), dense=st.booleans())
def test_tolerances_are_symmetric_grow_with_depth_and_stay_below_what_zeros_differ(
    depths: tuple[int, int], dense: bool
) -> None:
    formats: tuple[WeightFormat, ...] = ("float32", "float16", "bfloat16", "int8", "int4")
    for one, other in itertools.product(formats, repeat=2):
        found = allowed_difference(Held(weights=one), Held(weights=other), min(depths), is_dense=dense)
        assert found == allowed_difference(Held(weights=other), Held(weights=one), min(depths), is_dense=dense)
        deeper = allowed_difference(Held(weights=one), Held(weights=other), max(depths), is_dense=dense)
        if found is None or deeper is None:
            assert one != other
            assert not dense or "int4" in (one, other)
            continue
        assert found.middle <= deeper.middle <= 0.9
        assert found.stray <= deeper.stray <= 0.9


@pytest.mark.parametrize("weights", ["float16", "bfloat16"])
def test_tokens_that_go_to_other_experts_by_rounding_are_no_alarm(weights: WeightFormat) -> None:
    """As far as honest workers were seen to differ, in `benchmarks.audits alarms`; and a third of that more."""
    held = Held(weights=weights)
    allowed = allowed_difference(held, held, 1, is_dense=False)
    assert allowed is not None
    assert allowed.middle >= 1.33 * 0.147
    assert allowed.stray >= 1.33 * 0.504


def test_a_third_decides_if_it_agrees_with_one_of_the_two() -> None:
    assert outcomes("a", "b", said({("a", "b"): True}), []) == Ruling(target="passed", partner="passed")
    nobody = Ruling(target="suspected", partner="suspected")
    differ = {("a", "b"): False}
    assert outcomes("a", "b", said(differ), ["c"]) == nobody
    for with_a, with_b in ((True, True), (False, False)):
        assert outcomes("a", "b", said({**differ, ("a", "c"): with_a, ("b", "c"): with_b}), ["c"]) == nobody
    found = outcomes("a", "b", said({**differ, ("a", "c"): True, ("b", "c"): False}), ["c"])
    assert found == Ruling(target="passed", partner="failed", referee="c")
    later = said({**differ, ("a", "c"): True, ("b", "c"): True, ("a", "d"): False, ("b", "d"): True})
    assert outcomes("a", "b", later, ["c", "d"]) == Ruling(target="failed", partner="passed", referee="d")


def test_referees_that_are_of_two_minds_have_nobody_fail() -> None:
    accomplice, honest = {("a", "c"): False, ("b", "c"): True}, {("a", "d"): True, ("b", "d"): False}
    comparisons = said({("a", "b"): False, **accomplice, **honest})
    for referees in (["c", "d"], ["d", "c"]):
        assert outcomes("a", "b", comparisons, referees).target == "suspected"
