"""What follows when operators decide by hand: pins of blocks, moves from one worker to another, settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import msgspec

from coordinator.policy.changes import Change, save_assignment
from coordinator.policy.coverage import spans_of
from coordinator.policy.effects import AuditAction, DeletePin, DeleteSetting, SavePin, SaveSetting
from coordinator.policy.events import AssignmentPinned, AssignmentUnpinned, OperatorEvent, SettingsChanged
from coordinator.policy.handover import Spans
from coordinator.policy.looking import next_look_s
from coordinator.policy.moving import is_safe
from coordinator.policy.pins import Pin, pin_words
from coordinator.policy.settings import shown
from coordinator.policy.state import ClusterState, WorkerRecord
from protocol.ids import BlockRange, ModelName, WorkerId

_PLACED_BY = {"placement", "auto_quantize"}
"""Settings that placement answers at once; the others are looked at when they are next needed."""


def operator_decided(change: Change, event: OperatorEvent) -> Change:
    """The decision is in force, kept, and in the audit log."""
    match event:
        case AssignmentPinned(worker_id=worker_id, pin=pin):
            action: AuditAction = "assignment_pinned" if pin.takes_from is None else "assignment_moved"
            before, view = _before_words(change.state, worker_id), _view(change.state.pins.get(worker_id))
            details = f"{pin_words(pin)}; before: {before}"
            change = change.audited(action, worker_id, details, before=view, after=_view(pin))
            return _with_pin(change, worker_id, pin, pin_words(pin)).to_place()
        case AssignmentUnpinned(worker_id=worker_id, by=by):
            before, view = _before_words(change.state, worker_id), _view(change.state.pins.get(worker_id))
            change = change.audited("assignment_unpinned", worker_id, f"by {by}; before: {before}", before=view)
            return _with_pin(change, worker_id, None, "an operator had it pinned, and ended that").to_place()
        case SettingsChanged():
            return _settings_changed(change, event)


def finished_moves(change: Change) -> Change:
    """Who gives blocks up does so, once another serves them that was pinned to them and nothing else needs them."""
    for worker_id in change.state.pins:
        pin = change.state.pins.get(worker_id)  # the end of one move may change the pin of the next
        if pin is None or pin.takes_from is None or pin.taken is None:
            continue
        giver = change.state.workers.get(pin.takes_from)
        left = None if giver is None else spans_without(change.state, giver, pin.model, pin.taken)
        if giver is None or left is None:  # it has given them up for another reason, or holds something else now
            change = _move_over(change, worker_id, pin)
        elif _can_give_up(change.state, worker_id, pin, {giver.worker_id: left}):
            change = _given_up(_move_over(change, worker_id, pin), giver, pin, left)
    return change


def spans_without(state: ClusterState, worker: WorkerRecord, name: ModelName, taken: BlockRange) -> Spans | None:
    """What the worker would hold without these blocks; None if it lacks one, or would be left with two ranges."""
    model = state.models.get(name)
    own = () if model is None else spans_of(model, worker.assignment.spans)
    held = next((span for span in own if span.blocks.contains(taken)), None)
    if held is None or (held.blocks.start < taken.start and taken.end < held.blocks.end):
        return None
    others = tuple(span for span in worker.assignment.spans if span != held)
    if held.blocks == taken:
        return others
    if held.blocks.start == taken.start:
        left = BlockRange(taken.end, held.blocks.end)
    else:
        left = BlockRange(held.blocks.start, taken.start)
    return (*others, msgspec.structs.replace(held, blocks=left))


def _can_give_up(state: ClusterState, worker_id: WorkerId, pin: Pin, step: Mapping[WorkerId, Spans]) -> bool:
    return state.changed_s is None and _serves(state, worker_id, pin) and (pin.is_forced or is_safe(state, step))


def _serves(state: ClusterState, worker_id: WorkerId, pin: Pin) -> bool:
    worker = state.workers.get(worker_id)
    return (
        worker is not None
        and worker.is_routable
        and any(span.model == pin.model and span.blocks == pin.blocks for span in worker.ready)
    )


def _given_up(change: Change, giver: WorkerRecord, pin: Pin, left: Spans) -> Change:
    why = f"blocks {pin.taken} of {pin.model} were moved to another worker by an operator ({pin.by})"
    own = giver.pin
    if own is not None:
        rest = next((span.blocks for span in left if span.model == own.model), None)
        kept = None if rest is None else replace(own, blocks=rest)
        change = _with_pin(change, giver.worker_id, kept, why)
    return change.reassigned(giver.worker_id, left, why).to_place(is_news=False)


def _move_over(change: Change, worker_id: WorkerId, pin: Pin) -> Change:
    over = replace(pin, takes_from=None, taken=None, is_forced=False)
    return _with_pin(change, worker_id, over, pin_words(over))


def _with_pin(change: Change, worker_id: WorkerId, pin: Pin | None, reason: str) -> Change:
    """With this pin, or without any; what the worker holds says why until placement says more."""
    pins = {w: other for w, other in change.state.pins.items() if w != worker_id}
    if pin is not None:
        pins[worker_id] = pin
    change = replace(change, state=replace(change.state, pins=pins))
    change = change.then(DeletePin(worker_id=worker_id) if pin is None else SavePin(worker_id=worker_id, pin=pin))
    worker = change.state.workers.get(worker_id)
    if worker is None:
        return change
    assignment = replace(worker.assignment, reason=reason)
    change = change.updated(worker_id, pin=pin, assignment=assignment)
    return change.then(save_assignment(worker_id, assignment))


def _before_words(state: ClusterState, worker_id: WorkerId) -> str:
    pin = state.pins.get(worker_id)
    if pin is not None:
        return pin_words(pin)
    worker = state.workers.get(worker_id)
    spans = () if worker is None else worker.assignment.spans
    return " and ".join(f"blocks {span.blocks} of {span.model}" for span in spans) or "nothing"


def _view(pin: Pin | None) -> dict[str, str | None] | None:
    """A pin for the audit log."""
    if pin is None:
        return None
    return {
        "model": pin.model,
        "blocks": str(pin.blocks),
        "by": pin.by,
        "reason": pin.reason,
        "takes_from": pin.takes_from,
        "taken": None if pin.taken is None else str(pin.taken),
    }


def _settings_changed(change: Change, event: SettingsChanged) -> Change:
    before = change.state.settings
    settings = replace(before, **event.in_force)  # type: ignore[arg-type]
    stored = {**change.state.stored_settings, **event.stored}
    kept = {name: value for name, value in stored.items() if value is not None}
    change = replace(change, state=replace(change.state, settings=settings, stored_settings=kept))
    for name, value in event.stored.items():
        change = change.then(DeleteSetting(name=name) if value is None else SaveSetting(name=name, value=value))
    words = [f"{n} {shown(getattr(before, n))} -> {shown(value)}" for n, value in event.in_force.items()]
    change = change.audited(
        "settings_changed",
        "cluster",
        f"by {event.by}: {', '.join(words)}",
        before={name: getattr(before, name) for name in event.in_force},
        after=dict(event.in_force),
    )
    if any(name in _PLACED_BY and getattr(before, name) != value for name, value in event.in_force.items()):
        return change.to_place()
    state = change.state
    if state.improve_s is not None:
        change = replace(change, state=replace(state, improve_s=next_look_s(state, change.now_s)))
    return change
