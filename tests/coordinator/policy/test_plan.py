from __future__ import annotations

import pytest

from coordinator.policy.events import DrainAsked, WorkerBeat
from coordinator.policy.plan import Plan, plan
from coordinator.policy.views import plan_info
from protocol.ids import WorkerId
from tests.coordinator.policy.fleet import Fleet, added, heartbeat, memory_for


def planned(fleet: Fleet) -> Plan:
    return plan(fleet.state, "balance", fleet.now_s)


def test_a_plan_shows_what_would_be_faster_and_changes_nothing() -> None:
    fleet = Fleet()  # spreads
    fleet.do(added(end_parameters=0))
    for name in "ab":
        fleet.join(name, memory=memory_for(8, ends=2))
    fleet.wait(2)
    before = fleet.state
    assert set(fleet.blocks().values()) == {"0:4", "4:8"}

    (model,) = planned(fleet).models
    assert fleet.state is before
    assert [str(span.blocks) for span in model.spans] == ["0:8", "0:8"]
    assert model.planned is not None
    assert model.now is not None
    assert model.now.step_s == pytest.approx(model.planned.step_s + 2 * 0.0005), "two links less"
    assert model.planned.tokens_per_s == pytest.approx(model.now.tokens_per_s)


def test_for_every_worker_left_out_it_says_why() -> None:
    fleet = Fleet()
    fleet.do(added())
    for name in "ab":
        fleet.join(name, memory=memory_for(5, ends=1))
    fleet.join("far", memory=memory_for(5, ends=1))
    fleet.do(WorkerBeat(worker_id=WorkerId("far"), heartbeat=heartbeat(round_trips_s={"a": 9.0, "b": 9.0})))
    fleet.join("tiny", memory=10)
    fleet.join("leaves", memory=memory_for(5, ends=1))
    fleet.do(DrainAsked(worker_id=WorkerId("leaves"), reason="maintenance"))
    fleet.wait(2)

    found = planned(fleet)
    reasons = dict(found.left_out)
    assert set(reasons) == {"far", "tiny", "leaves"}
    assert "of them on links, instead of" in reasons["far"]
    assert "spare" in reasons["tiny"]
    assert "maintenance" in reasons["leaves"]
    info = plan_info(fleet.state, "balance", fleet.now_s)
    assert [worker.hostname for worker in info.left_out if worker.worker_id == "far"] == ["host-far"]
    assert info.models[0].planned is not None
    assert info.models[0].planned.one_stream_tokens_per_s > 0


def test_a_model_that_cant_be_held_has_no_speed() -> None:
    fleet = Fleet()
    fleet.do(added())
    fleet.join("a", memory=memory_for(3, ends=1))
    fleet.wait(2)

    (model,) = planned(fleet).models
    assert (model.planned, model.now) == (None, None)
    assert [str(span.blocks) for span in model.spans] == ["0:3"]
