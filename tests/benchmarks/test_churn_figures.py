"""The numbers of the churn benchmark."""

from __future__ import annotations

from benchmarks.churn_figures import Figures, StallRecord, as_json, n_wrong, quantile


def test_tokens_that_differ_lack_or_exceed_are_wrong() -> None:
    assert n_wrong([1, 2, 3], [1, 2, 3]) == 0
    assert n_wrong([1, 9, 3], [1, 2, 3]) == 1
    assert n_wrong([1, 2], [1, 2, 3]) == 1
    assert n_wrong([1, 2, 3, 4], [1, 2, 3]) == 1


def test_quantiles_are_values_that_were_seen() -> None:
    assert quantile([], 0.5) == 0.0
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile(list(range(1, 21)), 0.95) == 19
    assert quantile([5.0], 0.95) == 5.0


def test_a_lost_generation_or_a_wrong_token_is_not_clean() -> None:
    stalls = StallRecord()
    stalls.add("kill", [1.0, 2.0])
    stalls.add("kill", [])
    figures = Figures(seed=1, seconds=1.0, n_streams=4, stalls=stalls.summary())
    told = as_json(figures)
    assert told["is_clean"]
    assert told["stalls"]["kill"] == {"n_faults": 2, "n_streams": 2, "p50_s": 1.0, "p95_s": 2.0, "max_s": 2.0}
    figures.n_lost_generations = 1
    assert not as_json(figures)["is_clean"]
