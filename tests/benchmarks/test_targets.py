"""What counts as reached."""

from __future__ import annotations

import io

from rich.console import Console

from benchmarks.streams_at_once import rate_while_all_run
from benchmarks.targets import Outcome, Target, outcomes_json, outcomes_table

LEAST = Target(name="fast", what="ours / theirs", bound=1.5)
MOST = Target(name="small", what="ours / theirs", bound=0.5, is_least=False)


def test_the_median_of_the_ratios_has_to_reach_the_bound() -> None:
    assert Outcome(target=LEAST, ratios=(1.0, 1.5, 9.0)).is_reached
    assert not Outcome(target=LEAST, ratios=(1.4, 1.4, 9.0)).is_reached
    assert Outcome(target=MOST, ratios=(0.5,)).is_reached
    assert not Outcome(target=MOST, ratios=(0.51,)).is_reached


def test_what_could_not_be_measured_is_not_reached_and_says_why() -> None:
    failed = Outcome(target=MOST, failure="there is no int4")
    assert not failed.is_reached
    (told,) = outcomes_json([failed])
    assert (told["value"], told["is_reached"], told["failure"]) == (None, False, "there is no int4")
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(outcomes_table([failed, Outcome(target=LEAST, ratios=(2.0,), details={"s": 0.5})], "title"))
    text = console.export_text()
    assert "there is no int4" in text
    assert "s 0.5" in text


def test_the_rate_of_several_streams_is_taken_while_all_of_them_run() -> None:
    assert rate_while_all_run([[0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]]) == 2.0
