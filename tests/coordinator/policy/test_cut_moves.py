"""What ends the wait for a move that a restart cut short though a worker still loads: a plan that is wrong now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest

from coordinator.policy.cut_moves import basis_of, why_given_up
from coordinator.policy.effects import SaveMoving, WriteAudit
from coordinator.policy.events import (
    AssignmentPinned,
    DrainAsked,
    ModelRemoved,
    ReplicasAsked,
    SettingsChanged,
    SpansReported,
    WorkerBeat,
    WorkerConnected,
    WorkerLeft,
)
from coordinator.policy.outlook import moving_words
from coordinator.policy.pins import Pin
from coordinator.policy.statuses import status_as
from coordinator.policy.trust import Standing
from coordinator.policy.under_way import Moving
from protocol.control_messages import SpanReport
from protocol.ids import BlockRange, ModelName, WorkerId
from tests.coordinator.policy.fleet import Fleet, added, announce, heartbeat, memory_for
from tests.coordinator.policy.test_under_way import (
    SEEDS,
    after_a_second,
    cut_after,
    held,
    moving_fleet,
    restarted,
    settled,
    target_of,
)

M = ModelName("m")
HOURS_S = 3600.0


def still_loading(fleet: Fleet) -> WorkerId:
    """A worker that holds blocks and is said to load them, for ever."""
    worker_id = next(w for w, worker in fleet.state.workers.items() if worker.assignment.spans)
    assignment = fleet.state.workers[worker_id].assignment
    statuses = tuple(status_as(span, "loading", "") for span in assignment.spans)
    report = SpanReport(epoch=assignment.epoch, spans=statuses)
    fleet.do(SpansReported(worker_id=worker_id, report=report))
    return worker_id


def waiting() -> tuple[Fleet, WorkerId]:
    """A cluster that waits for a worker that loads, and that worker."""
    again = restarted(cut_after(SEEDS[0], 1))
    loading = still_loading(again)
    again.wait(90)
    assert again.state.moving is not None
    assert again.state.moving.is_cut
    return again, loading


def ended(fleet: Fleet, seconds: int = 4, silent: tuple[str, ...] = ()) -> str:
    """Why the move was ended, by the log."""
    for _ in range(seconds):
        fleet.wait(1, silent=silent)
        lines = [e for e in fleet.effects if isinstance(e, WriteAudit) and e.action == "moving_ended"]
        if lines:
            assert fleet.state.moving is None
            return lines[0].details
    raise AssertionError(f"nothing ended it: {moving_words(fleet.state)}")


def test_the_wait_says_for_whom_and_what_else_waits_and_what_to_do() -> None:
    fleet, loading = waiting()
    words = moving_words(fleet.state)
    assert "goes on once all who hold blocks have them ready" in words
    assert "until then nothing else is placed, for 3,600 s at most" in words
    assert f"It waits for {loading} (host-{loading}), where blocks" in words
    assert "are being loaded" in words
    assert "`coord worker drain` one of them" in words
    absent = next(w for w in held(fleet) if w != loading)
    away = restarted(cut_after(SEEDS[0], 1), absent=absent)
    assert f"It waits for {absent} (h), which isn't back yet" in moving_words(away.state)
    away.do(WorkerLeft(worker_id=loading, reason="stopped", serves_on_s=0.0))
    assert f"{loading} (host-{loading}), which was stopped or isn't heard of" in moving_words(away.state)


def test_one_whose_blocks_are_all_given_out_says_whom_its_end_waits_for() -> None:
    fleet = restarted(cut_after(SEEDS[0], 2))
    words = moving_words(fleet.state)
    assert words.startswith(
        "The coordinator was restarted in the midst of it, and ends it in a moment; Placed anew, "
    )
    loading = still_loading(fleet)
    fleet.wait(5)
    words = moving_words(fleet.state)
    assert "and ends it, since all its blocks are given out, once all who hold blocks have them ready" in words
    assert f"It waits for {loading} (host-{loading}), where blocks" in words
    assert "goes on" not in words


def add_a_model(fleet: Fleet, _loading: WorkerId) -> None:
    fleet.do(added("other", n_blocks=2))


def ask_for_replicas(fleet: Fleet, _loading: WorkerId) -> None:
    fleet.do(ReplicasAsked(name=M, n_replicas=2))


def remove_the_model(fleet: Fleet, _loading: WorkerId) -> None:
    fleet.do(ModelRemoved(name=M))


def join(fleet: Fleet, _loading: WorkerId) -> None:
    fleet.join("newcomer", memory=memory_for(20, ends=2))


def pin(fleet: Fleet, loading: WorkerId) -> None:
    pin = Pin(model=M, blocks=BlockRange(0, 1), by="operator")
    fleet.do(AssignmentPinned(worker_id=loading, pin=pin))


def drain(fleet: Fleet, loading: WorkerId) -> None:
    fleet.do(DrainAsked(worker_id=loading, reason="to be cleaned"))


def place_for_another_thing(fleet: Fleet, _loading: WorkerId) -> None:
    fleet.do(SettingsChanged(by="me", in_force={"placement": "many-streams"}, stored={"placement": "many-streams"}))


def turn_it_off(fleet: Fleet, _loading: WorkerId) -> None:
    fleet.state = replace(fleet.state, is_move_asked=False)


def come_back_in_another_precision(fleet: Fleet, loading: WorkerId) -> None:
    worker = fleet.state.workers[loading]
    assert worker.device is not None
    device = {"memory_bytes": worker.device.memory_bytes, "quantization": "int8"}
    fleet.do(WorkerConnected(worker_id=loading, announce=announce(loading, device=device)))


def set_its_clock_wrong(fleet: Fleet, loading: WorkerId) -> None:
    fleet.do(WorkerBeat(worker_id=loading, heartbeat=heartbeat(time_s=fleet.now_s + 7200.0)))


def fix_its_blocks(fleet: Fleet, _loading: WorkerId) -> None:
    worker_id = next(w for w, spans in target_of(fleet).items() if fleet.state.workers[w].assignment.spans != spans)
    worker = fleet.state.workers[worker_id]
    assert worker.device is not None
    said = announce(worker_id, memory=worker.device.memory_bytes, pinned_blocks=BlockRange(0, 1))
    fleet.do(WorkerConnected(worker_id=worker_id, announce=said))


def distrust(fleet: Fleet, loading: WorkerId) -> None:
    barred = replace(fleet.state.workers[loading], trust=Standing(score=0.0, level="quarantined"))
    fleet.state = replace(fleet.state, workers={**fleet.state.workers, loading: barred})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (add_a_model, "model other was added"),
        (ask_for_replicas, "model m was changed"),
        (remove_the_model, "model m was removed"),
        (join, "newcomer (host-newcomer) came, which may do better"),
        (pin, "an operator pinned"),
        (drain, "is to leave"),
        (place_for_another_thing, "what blocks are placed for, or whether in fewer bits, was changed"),
        (turn_it_off, "blocks are moved only if an operator asks (--replan off), and none did"),
        (come_back_in_another_precision, "holds weights in int8 now, and it was planned for float32"),
        (set_its_clock_wrong, "has a wrong clock"),
        (fix_its_blocks, "has its blocks fixed (--blocks)"),
    ],
)
def test_what_makes_the_plan_a_wrong_one_ends_the_wait(change: Callable[[Fleet, WorkerId], None], why: str) -> None:
    fleet, loading = waiting()
    change(fleet, loading)
    assert why in ended(fleet)
    fleet.wait(3)
    assert fleet.state.changed_s is None, "placement has answered"


def test_who_isnt_trusted_any_more_ends_it() -> None:
    fleet, loading = waiting()
    distrust(fleet, loading)
    assert fleet.state.moving is not None
    assert why_given_up(fleet.state, fleet.state.moving) == f"{loading} (host-{loading}) isn't trusted any more"


def test_who_takes_part_and_goes_away_for_good_ends_it() -> None:
    fleet, loading = waiting()
    other = next(w for w in target_of(fleet) if w != loading)
    assert f"{other} has gone" in ended(fleet, 20, silent=(other,))


def test_who_was_lost_already_when_it_was_planned_ends_nothing() -> None:
    fleet = moving_fleet(SEEDS[0])
    holder = next(worker for worker in fleet.state.workers.values() if worker.assignment.spans)
    lost = replace(holder, worker_id=WorkerId("x"), presence="lost", is_connected=False, reported=())
    state = replace(fleet.state, workers={**fleet.state.workers, lost.worker_id: lost})
    assert state.moving is not None
    fleet.state = replace(state, moving=replace(state.moving, basis=basis_of(state)))
    target = target_of(fleet)
    again = restarted(fleet, absent="x")
    assert again.state.moving is not None
    for _ in range(40):
        after_a_second(again)
    assert again.state.moving is None
    assert again.state.workers[lost.worker_id].presence == "lost"
    assert {worker_id: held(again)[worker_id] for worker_id in target} == target


def test_what_was_asked_for_is_planned_anew_for_the_cluster_that_there_is() -> None:
    fleet, _ = waiting()
    join(fleet, WorkerId(""))
    ended(fleet)
    assert fleet.state.is_move_asked
    settled(fleet, 40)
    assert (fleet.state.moving, fleet.state.is_move_asked) == (None, False)


def test_after_the_longest_wait_it_says_who_had_it_wait() -> None:
    fleet, loading = waiting()
    fleet.state = replace(fleet.state, settings=replace(fleet.state.settings, longest_step_s=95.0))
    assert f"not all of what they hold could be used in time on {loading} (host-{loading})" in ended(fleet, 8)


def test_a_plan_with_pins_goes_on_while_they_are_the_same() -> None:
    fleet, loading = waiting()
    pins = {loading: Pin(model=M, blocks=BlockRange(0, 1), by="operator")}
    state = replace(fleet.state, pins=pins)
    assert state.moving is not None
    moving = replace(state.moving, basis=basis_of(state))
    assert "pinned" not in why_given_up(state, moving)
    assert why_given_up(replace(state, pins={}), moving) == f"an operator pinned {loading}, or ended that"


def test_who_hasnt_said_what_it_is_is_awaited() -> None:
    fleet, loading = waiting()
    unknown = replace(fleet.state.workers[loading], device=None, presence="expected", is_connected=False)
    state = replace(fleet.state, workers={**fleet.state.workers, loading: unknown})
    assert state.moving is not None
    assert why_given_up(state, state.moving) == ""


DAYS_S = 3 * 24 * HOURS_S


@pytest.mark.parametrize("ago_s", [DAYS_S, -DAYS_S])
def test_what_was_kept_long_ago_isnt_gone_on_with(ago_s: float) -> None:
    fleet = cut_after(SEEDS[0], 1)
    again = restarted(fleet, row={"step_s": fleet.now_s - ago_s})
    assert again.state.moving is None


def test_why_what_was_kept_isnt_gone_on_with() -> None:
    fleet = cut_after(SEEDS[0], 1)
    target = target_of(fleet)
    basis = basis_of(fleet.state)
    worker_id = next(w for w, spans in target.items() if fleet.state.workers[w].assignment.spans != spans and spans)
    in_int8 = {
        **target,
        worker_id: tuple(msgspec.structs.replace(s, quantization="int8") for s in target[worker_id]),
    }
    moving = Moving(target=target, reason="r", step_s=fleet.now_s, is_cut=True, basis=basis)
    assert why_given_up(fleet.state, moving) == ""
    other_blocks = dict.fromkeys(basis.held, ())
    for kept, why in (
        (replace(moving, basis=None), "an older version of the coordinator kept it"),
        (replace(moving, away_s=3601.0), "its last step was begun 3,601 s before that, longer than 3,600 s"),
        (replace(moving, basis=replace(basis, held=other_blocks)), "was given other blocks meanwhile"),
        (replace(moving, basis=replace(basis, held={})), "was given other blocks meanwhile"),
        (replace(moving, target=in_int8), "was to hold blocks in int8, and can't or mayn't now (--precision)"),
    ):
        assert why in why_given_up(fleet.state, kept)


def test_each_step_is_kept_with_what_the_move_was_planned_for() -> None:
    """So that how long the coordinator was away counts, not how long the move takes."""
    fleet = moving_fleet(SEEDS[0])
    began_s = fleet.now_s
    kept = []
    for _ in range(20):
        kept += [e.moving for e in after_a_second(fleet) if isinstance(e, SaveMoving)]
    assert kept[-1] is None
    assert len(kept) > 1
    assert all(one is not None and one.basis is not None and one.step_s > began_s for one in kept[:-1])
