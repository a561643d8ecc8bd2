from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.bench_figures import Attempt, BenchReport, LevelFigures, figures_table, level_figures, quantile

WHOLE = Attempt(began_s=10.0, came_at_s=[11.0, 11.5, 12.0], is_whole=True)
FAILED = Attempt(began_s=10.0, came_at_s=[13.0], failure="worker w-1 is gone", n_failovers=2)
CUT = Attempt(began_s=12.0, came_at_s=[12.5, 14.0])


def report_of(*levels: LevelFigures) -> BenchReport:
    return BenchReport(
        model="m",
        revision="r",
        n_prompt_tokens=1,
        max_tokens=3,
        route=(),
        levels=levels,
        is_interrupted=False,
    )


def test_a_level_counts_what_came_of_every_generation() -> None:
    figures = level_figures(2, [WHOLE, FAILED, CUT])
    assert (figures.n_whole, figures.n_failed, figures.n_interrupted, figures.n_failovers) == (1, 1, 1, 2)
    assert (figures.n_tokens, figures.seconds) == (6, 4.0)
    assert figures.tokens_per_s == pytest.approx(1.5)
    assert figures.stream_tokens_per_s == pytest.approx(1 / 1.5)
    assert (figures.ttft_p50_s, figures.ttft_p95_s) == (1.0, 3.0)
    assert (figures.inter_token_p50_s, figures.inter_token_p95_s) == (0.5, 1.5)
    assert figures.failures == {"worker w-1 is gone": 1}


def test_tokens_that_come_together_share_the_wait_for_them() -> None:
    """Guesses that held come in one message; each at once after the other, they would have taken no time at all."""
    guessed = Attempt(began_s=0.0, came_at_s=[1.0, 1.0001, 1.4, 1.4001, 1.4002, 1.4003, 1.5])
    figures = level_figures(1, [guessed])
    assert figures.inter_token_p50_s == pytest.approx(0.1)
    assert figures.inter_token_p95_s == pytest.approx(0.1)


@given(st.lists(st.floats(0.001, 10.0), min_size=1, max_size=20))
def test_tokens_that_come_one_by_one_have_the_times_between_them(waits_s: list[float]) -> None:
    figures = level_figures(1, [Attempt(began_s=0.0, came_at_s=list(accumulate(waits_s, initial=1.0)))])
    assert figures.inter_token_p50_s == pytest.approx(quantile(waits_s, 0.5))
    assert figures.inter_token_p95_s == pytest.approx(quantile(waits_s, 0.95))


def test_nothing_measured_is_zeros() -> None:
    figures = level_figures(1, [Attempt(began_s=3.0)])
    assert (figures.tokens_per_s, figures.ttft_p95_s, figures.inter_token_p50_s, figures.seconds) == (0, 0, 0, 0)


def test_what_nobody_could_measure_is_no_figure_in_the_table() -> None:
    levels = (level_figures(1, [WHOLE]), level_figures(2, [Attempt(began_s=3.0, failure="no room")]))
    report = report_of(*levels)
    first_token = figures_table(report).columns[3]
    assert list(first_token.cells) == ["1000", "-"]


def test_a_report_adds_up_its_levels() -> None:
    levels = (level_figures(1, [WHOLE, FAILED]), level_figures(2, [FAILED]))
    report = report_of(*levels)
    assert report.failures == {"worker w-1 is gone": 2}
    assert report.as_json()["levels"][0]["n_whole"] == 1


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1.0))
def test_a_quantile_is_a_value_that_so_many_do_not_exceed(values: list[float], share: float) -> None:
    found = quantile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) * (1 - 1e-9)
    assert sum(value < found for value in values) < max(1.0, share * len(values))
