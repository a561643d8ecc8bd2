from __future__ import annotations

from random import Random

import numpy as np
import pytest

from benchmarks import audit_twice
from benchmarks.audit_alarms import Cell
from benchmarks.audit_answers import WHOLE, answer, garbage, tiny_files
from benchmarks.audit_tails import chance_of
from coordinator.policy.audit_probe import projected
from coordinator.policy.audit_rules import Held
from worker.batching_trial import settle_batching

EXACT = Held(weights="float32")
SEEDS = ["a", "b", "c"]


def test_a_batch_out_of_step_gives_what_a_worker_gives_alone() -> None:
    with tiny_files("llama") as files:
        stage = files.stage(WHOLE, EXACT)
        assert stage is not None
        settle_batching(stage)
        assert stage.batching.because == ""
        together = audit_twice.answers(stage, EXACT, SEEDS, rng=Random(3))
        for seed, rows in zip(SEEDS, together, strict=True):
            np.testing.assert_allclose(projected(seed, rows), answer(stage, EXACT, seed), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("is_honest", [True, False])
def test_who_is_wrong_now_and_then_differs_from_itself(monkeypatch: pytest.MonkeyPatch, is_honest: bool) -> None:
    if not is_honest:
        settle = audit_twice.settle_batching
        monkeypatch.setattr(audit_twice, "settle_batching", lambda stage: (settle(stage), garbage(0.1, 1)(stage)))
    monkeypatch.setattr(audit_twice, "FORMS", {EXACT: audit_twice.FORMS[EXACT]})
    found = audit_twice.measured(64, ["llama"])
    ((form, (chance,)),) = found.items()
    assert (form, chance.n_audits) == ((EXACT, False), 64 + 8)
    assert (chance.n_alarms == 0) == is_honest
    assert chance.most < 0.1 or not is_honest
    assert audit_twice.table(found).row_count == 1


def test_the_goal_is_reached_if_it_is_in_every_range() -> None:
    good, bad = (chance_of(Cell("llama", 0, WHOLE, 0), np.full(900, ratio, np.float32)) for ratio in (0.1, 1.5))
    assert audit_twice.is_reached({(EXACT, False): [good]})
    assert not audit_twice.is_reached({(EXACT, False): [good, bad]})
