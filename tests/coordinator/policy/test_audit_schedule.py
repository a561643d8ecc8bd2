from __future__ import annotations

import random
from dataclasses import replace

import msgspec
import pytest

from coordinator.policy.audit_schedule import (
    ANSWER_S,
    MOST_AT_ONCE,
    SHORTEST_S,
    AuditPlan,
    due,
    is_as_planned,
    mean_interval_s,
    plan,
    unaudited,
)
from coordinator.policy.state import ClusterState
from coordinator.policy.trust import Level, Standing
from protocol.ids import BlockRange, WorkerId
from tests.coordinator.policy.fleet import Fleet, added, announce, heartbeat

A, B, C = WorkerId("a"), WorkerId("b"), WorkerId("c")
RNG = random.Random(5)


def served(**pinned: str) -> Fleet:
    """Workers that hold the blocks `start_end` of a model of four."""
    fleet = Fleet()
    fleet.do(added(n_blocks=4))
    for name, blocks in pinned.items():
        start, end = blocks.split("_")
        fleet.join(name, pinned_model="m", pinned_blocks=BlockRange(int(start), int(end)))
    fleet.wait(3)
    fleet.all_ready()
    return fleet


def leveled(state: ClusterState, level: Level, *names: WorkerId) -> ClusterState:
    trust = Standing(score=0.3, level=level)
    return replace(
        state, workers={k: replace(w, trust=trust) if k in names else w for k, w in state.workers.items()}
    )


def plans(state: ClusterState, target: WorkerId, *busy: WorkerId) -> list[AuditPlan]:
    found = [plan(state, target, busy, RNG) for _ in range(30)]
    return [one for one in found if one is not None]


def test_blocks_that_two_hold_are_compared_and_a_third_may_decide() -> None:
    state = served(a="0_4", b="1_4", c="1_3").state
    found = {(str(one.blocks), one.others[0].worker_id, len(one.others)) for one in plans(state, A)}
    assert found == {("1:4", B, 1), ("1:3", C, 2)}
    assert {str(one.blocks) for one in plans(state, C)} == {"1:3"}
    assert {one.others[0].worker_id for one in plans(state, A, C)} == {B}


def test_who_was_given_other_blocks_or_another_precision_meanwhile_answers_as_another_would() -> None:
    state = served(a="0_4", b="1_4").state
    (one, *_) = plans(state, A)
    assert is_as_planned(state, one, one.target)
    worker = state.workers[A]
    assert worker.device is not None
    (span,) = worker.assignment.spans
    (status,) = worker.reported
    shorter = msgspec.structs.replace(span, blocks=BlockRange(0, 2))
    changed = {
        "started in another precision": replace(
            worker, device=msgspec.structs.replace(worker.device, precision="bfloat16")
        ),
        "assigned anew": replace(worker, assignment=replace(worker.assignment, epoch=worker.assignment.epoch + 1)),
        "given fewer blocks": replace(
            worker,
            assignment=replace(worker.assignment, spans=(shorter,)),
            reported=(msgspec.structs.replace(status, blocks=shorter.blocks),),
        ),
        "has nothing ready": replace(worker, reported=()),
    }
    for what, after in changed.items():
        assert not is_as_planned(replace(state, workers={A: after}), one, one.target), what
    assert not is_as_planned(replace(state, workers={}), one, one.target)
    loaded = replace(worker, heartbeat=heartbeat(n_queued=3))
    assert is_as_planned(replace(state, workers={A: loaded}), one, one.target)


def test_the_most_trusted_decides_and_nobody_in_quarantine_is_asked() -> None:
    state = served(a="0_4", b="0_4", c="0_4", d="0_4").state
    state = leveled(leveled(state, "trusted", WorkerId("d")), "quarantined", B)
    for one in plans(state, A):
        assert B not in {other.worker_id for other in one.others}
        assert one.others[0].worker_id != C or one.others[1].worker_id == "d"


def test_who_holds_blocks_alone_is_named() -> None:
    fleet = served(a="0_4", b="0_4")
    assert unaudited(fleet.state) == ""
    alone = served(a="0_2", b="2_4").state
    assert "0:2 of m on a, 2:4 of m on b" in unaudited(alone)
    (found, *_) = plans(alone, A)
    assert found.others == ()


def test_int4_is_compared_with_int4_alone() -> None:
    fleet = served(a="0_4")
    device = msgspec.structs.replace(announce("x").device, quantization="int4", precision="bfloat16")
    for name in ("b", "c"):
        changed = {field: getattr(device, field) for field in ("quantization", "precision")}
        fleet.join(name, device=changed, pinned_model="m", pinned_blocks=BlockRange(0, 4))
    fleet.wait(3)
    fleet.all_ready()
    assert plans(fleet.state, A)[0].others == ()
    assert {other.worker_id for one in plans(fleet.state, B) for other in one.others} == {C}


@pytest.mark.parametrize(("level", "rarity"), [("weak", 1), ("probation", 2), ("trusted", 8)])
def test_audits_take_their_share_of_time_and_no_more(level: Level, rarity: int) -> None:
    state = leveled(served(a="0_4", b="0_4").state, level, A, B)
    beat = heartbeat(decode_s_per_block=0.01)
    worker = replace(state.workers[A], heartbeat=beat)
    state = replace(state, workers={**state.workers, A: worker})
    assert mean_interval_s(worker, 0.01) == pytest.approx(24 * 4 * 0.01 / 0.01 * rarity)
    assert mean_interval_s(worker, 0.5) == SHORTEST_S * rarity
    n_seconds, rng = 40_000, random.Random(7)
    n_audits = sum(A in due(state, 0.01, 1.0, (), rng) for _ in range(n_seconds))
    assert n_audits == pytest.approx(n_seconds / mean_interval_s(worker, 0.01), rel=0.35)


def test_nobody_is_audited_that_is_busy_loaded_away_or_barred_nor_too_many_at_once() -> None:
    state = served(**dict.fromkeys("abcdefghi", "0_4")).state
    at_once = due(state, 0.5, 1e9, (), RNG)
    assert len(at_once) == MOST_AT_ONCE
    assert due(state, 0.0, 1e9, (), RNG) == []
    assert len(due(state, 0.5, 1e9, [A], RNG, n_under_way=MOST_AT_ONCE - 1)) == 1
    assert set(due(state, 0.5, 1e9, [WorkerId(name) for name in "abcd"], RNG)) == {WorkerId(n) for n in "efghi"}
    state = leveled(replace(state, workers={B: state.workers[B], C: state.workers[C]}), "banned", B)
    assert due(state, 0.5, 1e9, (), RNG) == [C]


def test_what_a_worker_says_of_itself_puts_audits_off_for_so_long_only() -> None:
    worker = served(a="0_4", b="0_4").state.workers[A]
    queued = replace(worker, heartbeat=heartbeat(n_queued=9, decode_s_per_block=0.001))
    assert mean_interval_s(queued, 0.5) == 8 * SHORTEST_S
    slow = replace(worker, heartbeat=heartbeat(decode_s_per_block=1e9))
    assert mean_interval_s(slow, 0.01) == 2 * ANSWER_S / 0.01


def test_who_cannot_be_asked_now_is_not_taken_for_nobody() -> None:
    state = served(a="0_4", b="0_4").state
    (found, *_) = plans(state, A, B)
    assert (found.others, found.n_busy) == ((), 1)
