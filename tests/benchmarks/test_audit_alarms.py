from __future__ import annotations

import pytest

from benchmarks import audit_alarms, audits
from benchmarks.audit_alarms import BFLOAT16, FLOAT32, PAIRS, asked, measured, projections, ratios
from benchmarks.audit_answers import RANGES, WHOLE, tiny_files
from coordinator.policy.audit_rules import Held, allowed_difference, compared


@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
def test_many_audits_at_once_find_what_the_coordinators_own_rules_do(architecture: str) -> None:
    dense = architecture == "llama"
    allowed = allowed_difference(Held(weights="bfloat16"), Held(weights="bfloat16"), 4, is_dense=dense)
    assert allowed is not None
    with tiny_files(architecture) as files:
        stages = [files.loaded(WHOLE, machine.dtype, machine.codes) for machine in (FLOAT32, BFLOAT16)]
        one, other = (projections(stage, asked(stage, ["a", "b"])) for stage in stages if stage is not None)
    found = ratios(one, other, allowed)
    for number in range(2):
        said = [(name, tuple(map(tuple, rows[number].tolist()))) for name, rows in (("one", one), ("other", other))]
        comparison = compared(said[0], said[1], allowed)
        assert found[number] == pytest.approx(comparison.difference / comparison.allowed, rel=1e-4)


def test_audits_are_kept_by_model_blocks_and_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_alarms, "PAIRS", PAIRS[1:3])
    alarms = measured(4, ["llama"], [0])
    assert (alarms.n_inputs, alarms.dense) == (16, {"llama"})
    assert {(cell.blocks, cell.pair): len(found) for cell, found in alarms.ratios.items()} == {
        (blocks, pair): 4 for blocks in RANGES for pair in (0, 1)
    }


def test_rounding_anew_is_refused_where_it_says_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["audits", "alarms", "--anew"])
    with pytest.raises(SystemExit, match="2"):
        audits.main()
    assert "--anew goes with `real`, not with `alarms`" in capsys.readouterr().err
