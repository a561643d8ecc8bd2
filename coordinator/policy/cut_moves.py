"""A move that a restart of the coordinator cut short: what it waits for, and why it is given up instead.

Nothing else is placed while it waits, so it waits only as long as its plan is one for the cluster that there is. A
plan is for the models, pins and settings, for who was there, and for what they held and in which precision
(`MoveBasis`); whatever has changed since, placement answers, and an operator's wish is then planned for anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from coordinator.policy.coverage import has_failed
from coordinator.policy.handover import Spans
from coordinator.policy.moving import pending, reachable
from coordinator.policy.quantising import is_open
from coordinator.policy.sizing import capacity_bytes, spans_bytes
from coordinator.policy.standing import listed, named, span_words
from coordinator.policy.state import ClusterState, WorkerRecord
from coordinator.policy.under_way import MoveBasis, Moving, PlannedModel
from protocol.control_messages import DeviceReport

TRIES_AGAIN_S = 60.0
"""What failed to load while the coordinator was away has so long to be loaded after all."""


def basis_of(state: ClusterState) -> MoveBasis:
    """What a move that is planned now rests on."""
    workers = state.workers.values()
    return MoveBasis(
        placement=state.settings.placement,
        auto_quantize=state.settings.auto_quantize,
        models={
            name: PlannedModel(revision=m.revision, n_replicas=m.n_replicas, pinned_ends=m.pinned_ends)
            for name, m in state.models.items()
        },
        workers=tuple(sorted(w.worker_id for w in workers if w.can_be_assigned)),
        held={w.worker_id: w.assignment.spans for w in _holders(state)},
        held_as={w.worker_id: w.device.held_as for w in workers if w.device is not None},
        pins={worker_id: (pin.model, pin.blocks) for worker_id, pin in state.pins.items()},
    )


def why_given_up(state: ClusterState, moving: Moving) -> str:
    """Why there is no use in waiting any longer: what has changed since it was planned; empty if nothing has."""
    if moving.basis is None:
        return "an older version of the coordinator kept it, without what it was planned for"
    longest_s = state.settings.longest_step_s
    if moving.away_s > longest_s:
        return f"its last step was begun {moving.away_s:,.0f} s before that, longer than {longest_s:,.0f} s"
    if not state.is_move_asked and state.settings.replan == "off":
        return "blocks are moved only if an operator asks (--replan off), and none did"
    return next(chain(_changes(state, moving.basis), _workers_changes(state, moving, moving.basis)), "")


def why_impossible(state: ClusterState, moving: Moving) -> str:
    """Why it can't go on at this moment, all being as it was planned for; empty if it can, to its end."""
    unready = [named(w) for w in _holders(state) if not w.is_routable or len(w.ready) < len(w.assignment.spans)]
    if unready:
        return f"not all of what they hold could be used in time on {listed(unready)}"
    left = pending(state, moving.target)
    small = [named(state.workers[w]) for w, spans in left.items() if not _fits(state, state.workers[w], spans)]
    if small:
        return f"{listed(small)} has too little memory now for what it was to hold"
    if reachable(state, moving.target) != dict(left):
        return "not all of its steps can be taken any more while all blocks stay served"
    return ""


def is_awaited(state: ClusterState, now_s: float) -> bool:
    """Whether a move that a restart cut short may go on once workers are back, or have loaded what they hold."""
    moving = state.moving
    if moving is None or not moving.is_cut or now_s - moving.step_s > state.settings.longest_step_s:
        return False
    tries_again = now_s - moving.step_s <= TRIES_AGAIN_S
    awaited = any(_is_awaited(worker, tries_again=tries_again) for worker in state.workers.values())
    return awaited and not why_given_up(state, moving)


def waiting_words(state: ClusterState) -> str:
    """For operators: whom a move that was cut short waits for, what that keeps back, and what they can do."""
    said = [awaited_words(w) for w in state.workers.values() if _is_awaited(w, tries_again=True)]
    is_left = state.moving is not None and bool(pending(state, state.moving.target))
    begin = "The coordinator was restarted in the midst of it"
    does = "goes on" if is_left else "ends it, since all its blocks are given out,"
    if not said:
        return f"{begin}, and {'goes on with it' if is_left else 'ends it'} in a moment"
    return (
        f"{begin}, and {does} once all who hold blocks have them ready; until then nothing else is placed, for "
        f"{state.settings.longest_step_s:,.0f} s at most. It waits for {listed(said)}. To have blocks placed "
        "without it: `coord worker drain` one of them; a new worker, a pin or a change of the models ends it too"
    )


def _holders(state: ClusterState) -> Iterator[WorkerRecord]:
    """Whose blocks count: of who was lost, or isn't trusted, others have them already."""
    return (w for w in state.workers.values() if w.assignment.spans and w.counts_as_holder)


def _changes(state: ClusterState, basis: MoveBasis) -> Iterator[str]:
    """What has changed of all that isn't a worker that takes part."""
    now = basis_of(state)
    for name in sorted(now.models.keys() | basis.models.keys()):
        if now.models.get(name) != basis.models.get(name):
            how = "added" if name not in basis.models else "changed" if name in now.models else "removed"
            yield f"model {name} was {how}"
    if (now.placement, now.auto_quantize) != (basis.placement, basis.auto_quantize):
        yield "what blocks are placed for, or whether in fewer bits, was changed (`coord settings show`)"
    for worker_id in sorted(now.pins.keys() | basis.pins.keys()):
        if now.pins.get(worker_id) != basis.pins.get(worker_id):
            yield f"an operator pinned {worker_id}, or ended that"
    for worker_id in now.workers:
        if worker_id not in basis.workers:
            yield f"{named(state.workers[worker_id])} came, which may do better"


def _workers_changes(state: ClusterState, moving: Moving, basis: MoveBasis) -> Iterator[str]:
    given_any = (w.worker_id for w in _holders(state) if w.worker_id in basis.workers)
    for worker_id in sorted({*basis.held, *moving.target, *given_any}):
        worker = state.workers.get(worker_id)
        if worker is None or worker.presence in ("lost", "gone"):
            yield f"{worker_id} has gone"
        elif why := _why_not(worker, basis.held.get(worker_id, ()), moving.target.get(worker_id), basis):
            yield f"{named(worker)} {why}"


def _why_not(worker: WorkerRecord, held: Spans, target: Spans | None, basis: MoveBasis) -> str:
    """What has changed of a worker that takes part; `target`: None of one that is to stay as it is."""
    is_told_to_leave = worker.departure is not None and not worker.departure.is_own_wish
    if worker.trust.is_barred:
        return "isn't trusted any more"
    if is_told_to_leave or (worker.is_draining and worker.kept_until_s is None):
        return "is to leave"
    if worker.is_shut_out:
        return "has a wrong clock"
    if worker.assignment.spans not in (held, target):
        return "was given other blocks meanwhile"
    if worker.device is None:  # it hasn't said yet what it is
        return ""
    if target in (None, worker.assignment.spans):
        return _why_in_other_precision(worker, worker.device, (), basis)
    if worker.pinned_blocks is not None:
        return "has its blocks fixed (--blocks)"
    return _why_in_other_precision(worker, worker.device, target or (), basis)


def _why_in_other_precision(worker: WorkerRecord, device: DeviceReport, to_get: Spans, basis: MoveBasis) -> str:
    """Whether the worker would hold weights otherwise than it was planned for: another size, and other answers."""
    held_as = basis.held_as.get(worker.worker_id, device.held_as)
    if device.held_as != held_as:
        return f"holds weights in {device.held_as} now, and it was planned for {held_as}"
    wanted = {span.quantization for span in to_get} - {None, *(device.quantizations if is_open(worker) else ())}
    if not wanted:
        return ""
    return f"was to hold blocks in {listed(sorted(map(str, wanted)))}, and can't or mayn't now (--precision)"


def _is_awaited(worker: WorkerRecord, *, tries_again: bool) -> bool:
    if not worker.assignment.spans:
        return False
    is_away = worker.presence in ("expected", "suspect")
    may_be_back = worker.kept_until_s is not None or worker.departure is not None
    unready = [span for span in worker.assignment.spans if span not in worker.ready]
    loads = worker.is_routable and any(tries_again or not has_failed(worker, span) for span in unready)
    return is_away or loads or (may_be_back and worker.presence == "here")


def awaited_words(worker: WorkerRecord) -> str:
    """Who it is, and why there is no use yet of what it holds."""
    if worker.presence == "expected":
        return f"{named(worker)}, which isn't back yet"
    unready = [span_words(s, worker.status_of(s)) for s in worker.assignment.spans if s not in worker.ready]
    if not worker.is_routable or not unready:
        return f"{named(worker)}, which was stopped or isn't heard of"
    return f"{named(worker)}, where {' and '.join(unready)}"


def _fits(state: ClusterState, worker: WorkerRecord, spans: Spans) -> bool:
    """Whether there is memory for it: the worker may have been started again with less."""
    assert worker.device is not None
    return spans_bytes(state, spans, worker.device.held_as, 0) <= capacity_bytes(worker.device)
