from __future__ import annotations

import numpy as np
import pytest

from benchmarks import audit_alarms
from benchmarks.audit_alarms import BFLOAT16, FLOAT32, PAIRS, Alarms, measured, projections, ratios, tail_of, words
from benchmarks.audit_answers import WHOLE, tiny_files
from coordinator.policy.audit_rules import Held, allowed_difference, compared


@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
def test_many_audits_at_once_find_what_the_coordinators_own_rules_do(architecture: str) -> None:
    dense = architecture == "llama"
    allowed = allowed_difference(Held(weights="bfloat16"), Held(weights="bfloat16"), 4, is_dense=dense)
    assert allowed is not None
    with tiny_files(architecture) as files:
        stages = [files.loaded(WHOLE, machine.dtype, machine.codes) for machine in (FLOAT32, BFLOAT16)]
        one, other = (projections(stage, ["a", "b"]) for stage in stages if stage is not None)
    found = ratios(one, other, allowed, is_dense=dense)
    for number in range(2):
        said = [(name, tuple(map(tuple, rows[number].tolist()))) for name, rows in (("one", one), ("other", other))]
        comparison = compared(said[0], said[1], allowed, is_dense=dense)
        assert found[number] == pytest.approx(comparison.difference / comparison.allowed, rel=1e-4)


def test_alarms_are_counted_by_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_alarms, "PAIRS", PAIRS[1:3])
    alarms = measured(4, ["llama"], [0])
    assert alarms.n_inputs == 16
    assert {pair: sum(map(len, found)) for (_, pair), found in alarms.ratios.items()} == {0: 16, 1: 16}
    assert "0 alarms in 32 audits of honest pairs, of 16 inputs" in words(alarms)
    assert "NOT met" in words(alarms)  # by so few


def test_the_tail_of_a_power_law_is_reckoned_as_it_is() -> None:
    values = np.random.default_rng(1).pareto(8.0, 200_000).astype(np.float32) + 1.0
    tail = tail_of(values)
    assert tail.chance(4.0) == pytest.approx(4.0**-8, rel=0.5)
    assert tail.chance(tail.level(1e-4)) == pytest.approx(1e-4)
    alarms = Alarms(ratios={("llama", 0): [values]}, dense={"llama"}, n_inputs=len(values))
    assert "NOT met" in words(alarms)
