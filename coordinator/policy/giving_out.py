"""Decisions become assignments: what placement found is given out, what is better is moved to step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from coordinator.policy.changes import Change
from coordinator.policy.cut_moves import basis_of, why_given_up, why_impossible
from coordinator.policy.events import ImprovementFound, PlacementFound
from coordinator.policy.handover import Spans
from coordinator.policy.looking import next_look_s, still_holds
from coordinator.policy.moving import is_at_rest, next_step, pending
from coordinator.policy.placement import Placed
from coordinator.policy.sizing import capacity_bytes
from coordinator.policy.state import Assignment
from coordinator.policy.under_way import Moving
from protocol.ids import WorkerId


def placement_found(change: Change, event: PlacementFound) -> Change:
    """Give out what was found, if it still holds; what has changed since then is placed after it."""
    touched = [worker_id for worker_id, what in event.placed.items() if what.spans]
    if change.state.changed_s is None or not still_holds(event.basis, change.state, touched):
        return change
    is_newest = change.state.n_changes == event.basis.n_changes
    change = all_placed(change, event.placed)
    state = replace(
        change.state,
        changed_s=None if is_newest else change.state.changed_s,
        improve_s=next_look_s(change.state, change.now_s),
    )
    return replace(change, state=state)


def improvement_found(change: Change, event: ImprovementFound) -> Change:
    """Begin to move to something better, if it is and still can be."""
    state, found = change.state, event.improvement
    is_possible = state.moving is None and is_at_rest(state) and still_holds(event.basis, state, found.moves)
    if not (found.is_worth_it and is_possible):
        change = replace(change, state=replace(state, improve_s=next_look_s(state, change.now_s)))
        return change.with_move_asked(is_asked=False) if not found.is_worth_it and state.moving is None else change
    moving = Moving(target=found.moves, reason=found.reason, step_s=change.now_s, basis=basis_of(state))
    state = replace(state, n_moves=0 if event.is_asked else state.n_moves + 1)
    # should the move be ended, nothing begins another one at once
    change = replace(change, state=replace(state, improve_s=next_look_s(state, change.now_s))).with_moving(moving)
    who = "an operator asked" if event.is_asked else "by itself"
    if state.is_move_asked:
        who = "goes on after a restart, as an operator asked"
    held = {worker_id: change.state.workers[worker_id].assignment.spans for worker_id in found.moves}
    change = change.with_move_asked(is_asked=event.is_asked).audited(
        "replanned",
        "cluster",
        f"{len(found.moves)} workers, {who}: {found.reason}",
        before=_view(held),
        after=_view(found.moves),
    )
    return moved_on(change)


def moved_on(change: Change) -> Change:
    """The next step of a move, once all of the one before is ready."""
    state, moving = change.state, change.state.moving
    if moving is None:
        return change
    if moving.is_cut:
        return _gone_on(change, moving)
    if not is_at_rest(state):
        if change.now_s - moving.step_s <= state.settings.longest_step_s:
            return change
        return change.stopped_moving(f"a step wasn't ready within {state.settings.longest_step_s:.0f} s").to_place(
            is_news=False
        )
    if not pending(state, moving.target):
        # what it left over is given out as ever
        return change.stopped_moving("all have what they were to get").to_place(is_news=False)
    step = next_step(state, moving.target)
    if not step:
        return change.stopped_moving("no other worker can be moved while all blocks stay served").to_place(
            is_news=False
        )
    if moving.step_s != change.now_s:
        change = change.with_moving(replace(moving, step_s=change.now_s))
    return all_placed(change, {w: Placed(spans=spans, reason=_words(spans, moving)) for w, spans in step.items()})


def _gone_on(change: Change, moving: Moving) -> Change:
    """The move that a restart cut short, with its next step; or its end, if it isn't possible any more."""
    if why := why_given_up(change.state, moving) or why_impossible(change.state, moving):
        words = f"a restart of the coordinator cut it short, and then: {why}"
        return change.with_moving(None).audited("moving_ended", "cluster", words)
    going_on = replace(moving, is_cut=False, step_s=change.now_s, away_s=0.0)
    # what else is to be placed comes after the move, as ever
    change = replace(change, state=replace(change.state, changed_s=None)).with_moving(going_on)
    n_left = len(pending(change.state, moving.target))
    words = f"goes on after a restart, {n_left} of {len(moving.target)} workers left: {moving.reason}"
    return moved_on(change.audited("replanned", "cluster", words))


def _view(held: Mapping[WorkerId, Spans]) -> dict[str, list[str]]:
    """Who holds which blocks, for the audit log."""
    return {
        worker_id: [f"blocks {span.blocks} of {span.model}" for span in spans]
        for worker_id, spans in sorted(held.items())
    }


def _words(spans: Spans, moving: Moving) -> str:
    what = " and ".join(f"blocks {span.blocks} of {span.model}" for span in spans) or "nothing"
    return f"{what}: placed anew, {moving.reason}"


def all_placed(change: Change, placed: Mapping[WorkerId, Placed]) -> Change:
    """Everybody has this from now on; of a worker that has gone meanwhile there is nothing to say."""
    for worker_id, what in placed.items():
        if worker_id in change.state.workers:
            change = _placed(change, worker_id, what)
    return change


def _placed(change: Change, worker_id: WorkerId, placed: Placed) -> Change:
    worker = change.state.workers[worker_id]
    old = worker.assignment
    if placed.spans == old.spans:
        return change.updated(worker_id, assignment=replace(old, reason=placed.reason))
    assert worker.device is not None
    assignment = Assignment(
        epoch=old.epoch + 1,
        spans=placed.spans,
        reason=placed.reason,
        capacity_bytes=None if placed.is_pinned else capacity_bytes(worker.device),
    )
    return change.assigned(worker_id, assignment)
