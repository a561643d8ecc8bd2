"""A move of blocks that a restart of the coordinator cuts short: it goes on, or is given up in words."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from coordinator.policy.cut_moves import TRIES_AGAIN_S
from coordinator.policy.effects import Effect, SaveMoving, WriteAudit
from coordinator.policy.events import ImprovementFound, ModelRemoved, TimePassed, WorkerBeat, WorkerConnected
from coordinator.policy.improvement import improvement
from coordinator.policy.moving import pending
from coordinator.policy.outlook import moving_words
from coordinator.policy.state import ClusterState, PolicySettings, Replan
from coordinator.policy.statuses import status_as
from coordinator.policy.stored import StoredState, StoredWorker, restored
from protocol.control_messages import SpanAssignment
from protocol.ids import ModelName, WorkerId
from tests.coordinator.policy.fleet import Fleet, added, announce, fits, heartbeat, memory_for

SEEDS = (2, 15, 59)
"""Of fleets whose move has more than one step."""


def moving_fleet(seed: int, replan: Replan = "off") -> Fleet:
    """Workers of measured speeds that hold a model, and a move that an operator asked for, at its first step."""
    rng = random.Random(seed)
    fleet = Fleet(ClusterState(settings=PolicySettings(replan=replan, replan_every_s=3.0)))
    fleet.do(added())
    names = [f"w{i}" for i in range(rng.randint(2, 8))]
    for name in names:
        fleet.join(name, memory=memory_for(rng.choice([6, 9, 20]), ends=2), speed=rng.uniform(0.2, 3.0))
        if rng.random() < 0.5:
            settled(fleet, 3)
    settled(fleet, 10)
    for name in names:
        beat = heartbeat(decode_s_per_block=10 ** rng.uniform(-4, -2))
        fleet.do(WorkerBeat(worker_id=WorkerId(name), heartbeat=beat))
    better = improvement(fleet.state, is_asked=True)
    fleet.do(ImprovementFound(basis=fleet.state, improvement=better, is_asked=True))
    return fleet


def settled(fleet: Fleet, seconds: int) -> None:
    for _ in range(seconds):
        fleet.wait(1)
        fleet.all_ready()


def cut_after(seed: int, n_halves: int) -> Fleet:
    """The move after so many halves of its steps: one is that a step is ready, the other that the next is begun."""
    fleet = moving_fleet(seed)
    for index in range(n_halves):
        if index % 2:
            fleet.wait(1)
        else:
            fleet.all_ready()
    return fleet


def after_a_second(fleet: Fleet) -> tuple[Effect, ...]:
    fleet.now_s += 1.0
    for worker in list(fleet.state.workers.values()):
        if worker.is_connected:
            fleet.do(WorkerBeat(worker_id=worker.worker_id, heartbeat=worker.heartbeat or heartbeat()))
    fleet.all_ready()
    return fleet.do(TimePassed())


def target_of(fleet: Fleet) -> Mapping[WorkerId, tuple[SpanAssignment, ...]]:
    assert fleet.state.moving is not None
    return fleet.state.moving.target


def held(fleet: Fleet) -> dict[WorkerId, tuple[SpanAssignment, ...]]:
    return {worker_id: worker.assignment.spans for worker_id, worker in fleet.state.workers.items()}


def restarted(fleet: Fleet, *, absent: str = "", row: Mapping[str, Any] | None = None) -> Fleet:
    """The cluster by a coordinator that read it from the database; the workers come back to it, one a second.

    `row`: other values of what was kept of the move.
    """
    old = fleet.state
    moving = None if old.moving is None else replace(old.moving, **(row or {}))
    stored = StoredState(
        workers=tuple(
            StoredWorker(
                worker_id=worker.worker_id,
                status="present",
                hostname="h",
                url=worker.url,
                device=worker.device,
                seen_s=worker.seen_s,
                epoch=worker.assignment.epoch,
                spans=worker.assignment.spans,
            )
            for worker in old.workers.values()
        ),
        models=tuple(old.models.values()),
        is_move_asked=old.is_move_asked,
        moving=moving,
    )
    again = Fleet(restored(stored, old.settings, fleet.now_s), fleet.now_s)
    for worker_id, worker in old.workers.items():
        again.wait(1)
        if worker_id == absent:
            continue
        assert worker.device is not None
        spans = tuple(status_as(span, "ready", "") for span in worker.assignment.spans)
        said = announce(worker_id, memory=worker.device.memory_bytes, epoch=worker.assignment.epoch, spans=spans)
        again.do(WorkerConnected(worker_id=worker_id, announce=said))
    return again


@pytest.mark.parametrize("seed", SEEDS)
def test_what_an_operator_asked_for_is_done_in_the_end_wherever_a_restart_cuts_it(seed: int) -> None:
    n_cuts = 0
    while (fleet := cut_after(seed, n_cuts)).state.moving is not None:
        target = dict(target_of(fleet))
        again = restarted(fleet)
        does = "goes on" if pending(again.state, target) else "ends it"
        assert f"The coordinator was restarted in the midst of it, and {does}" in moving_words(again.state)
        assert "go on once all are back" in improvement(again.state, is_asked=True).reason
        settled(again, 20)
        assert {w: spans for w, spans in held(again).items() if w in target} == target
        assert (again.state.moving, again.state.is_move_asked, moving_words(again.state)) == (None, False, "")
        n_cuts += 1
    assert n_cuts > 2, "of a move in one step nothing is left to do"


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_placed_before_it_has_gone_on(seed: int) -> None:
    """Else what the first step made free is filled, and there is no room for the second."""
    fleet = cut_after(seed, 1)
    before = held(fleet)
    again = restarted(fleet)
    assert held(again) == before
    assert again.state.moving is not None
    again.wait(1)
    assert again.state.moving is not None
    assert not again.state.moving.is_cut


def test_who_doesnt_come_back_ends_it_in_the_log_and_others_get_the_blocks() -> None:
    fleet = cut_after(SEEDS[0], 1)
    absent = next(iter(target_of(fleet)))
    again = restarted(fleet, absent=absent)
    effects = [effect for _ in range(60) for effect in after_a_second(again)]
    line = next(e for e in effects if isinstance(e, WriteAudit) and e.action == "moving_ended")
    assert "a restart of the coordinator cut it short" in line.details
    assert SaveMoving(moving=None) in effects
    assert again.state.moving is None


def test_one_of_its_own_accord_isnt_gone_on_with_where_that_was_turned_off_since() -> None:
    fleet = cut_after(SEEDS[0], 1)
    fleet.state = replace(fleet.state, is_move_asked=False)
    again = restarted(fleet)
    settled(again, 5)
    assert again.state.moving is None
    assert moving_words(again.state) == ""


def test_a_model_that_is_removed_meanwhile_ends_it() -> None:
    again = restarted(cut_after(SEEDS[0], 1))
    again.do(ModelRemoved(name=ModelName("m")))
    settled(again, 5)
    assert again.state.moving is None


def test_who_fails_to_load_what_it_held_doesnt_keep_others_waiting() -> None:
    again = restarted(cut_after(SEEDS[0], 1))
    worker_id = next(w for w, worker in again.state.workers.items() if worker.assignment.spans)
    again.report(worker_id, "failed", "the disk is full")
    again.wait(TRIES_AGAIN_S / 2)
    assert again.state.moving is not None, "it may have failed since the coordinator was away"
    again.wait(TRIES_AGAIN_S / 2 + 5)
    assert again.state.moving is None
    again.wait(2)
    assert again.state.changed_s is None, "placement has answered"


@pytest.mark.parametrize("seed", SEEDS)
def test_who_comes_back_with_less_memory_than_it_would_need_ends_it(seed: int) -> None:
    fleet = cut_after(seed, 1)
    for worker_id in pending(fleet.state, target_of(fleet)):
        again = restarted(fleet)
        again.do(WorkerConnected(worker_id=worker_id, announce=announce(worker_id, memory=memory_for(1))))
        settled(again, 20)
        assert fits(again.state, worker_id, 0), again.blocks()
        assert again.state.moving is None
