from __future__ import annotations

import pytest

from benchmarks import audit_honest
from benchmarks.audit_answers import FORMS
from coordinator.policy.audit_rules import Held


def test_false_failures_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {held: how for held, how in FORMS.items() if held.kv is None and held.weights != "float16"}
    monkeypatch.setattr(audit_honest, "FORMS", few)
    honest = audit_honest.measured(2, ["llama"])
    text = audit_honest.words(honest)
    assert (honest.n_failing, honest.n_suspected) == (0, 0)
    assert {key[1:] for key in honest.cells} == {
        (Held(weights=one), Held(weights=other))
        for one, other in (("float32", "bfloat16"), ("float32", "int8"), ("bfloat16", "int8"))
    }
    assert f"In 0 of {honest.n_audits:,} audits" in text
