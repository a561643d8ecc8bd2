"""What would follow if a worker were pinned to blocks: who else would hold what, how fast it would be, why not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from coordinator.policy.coverage import counts, runs, spans_of
from coordinator.policy.handover import Spans
from coordinator.policy.layouts import Layout, Speeds
from coordinator.policy.moving import all_ready, is_safe
from coordinator.policy.operator_changes import spans_without
from coordinator.policy.pins import Pin
from coordinator.policy.placement import placement
from coordinator.policy.quantising import fitting_quantization
from coordinator.policy.sizing import KV_TARGETS, capacity_bytes, span_bytes
from coordinator.policy.standing import listed
from coordinator.policy.state import ClusterState, ModelRecord, WorkerRecord
from protocol.control_messages import DeviceReport
from protocol.error_forms import repeated
from protocol.errors import ConflictError, InvalidRequestError, NotFoundError
from protocol.ids import BlockRange, ModelName, WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class Consequences:
    """What would follow."""

    needed_bytes: int
    """Of the blocks with a short cache, on the pinned worker."""
    capacity_bytes: int
    now: Speeds
    then: Speeds
    changes: Mapping[WorkerId, Spans]
    """What those would hold who would hold something else than now."""
    refusal: str
    """Why it can't be done at all; empty if it can."""
    loses: str
    """Which blocks would be served by nobody, for a while at least; empty if none."""


def checked_blocks(state: ClusterState, name: str, blocks: BlockRange) -> ModelRecord:
    """The model, if it has these blocks.

    Raises:
        NotFoundError: there is no such model.
        InvalidRequestError: it has fewer blocks.
    """
    model = state.models.get(ModelName(name))
    if model is None:
        raise NotFoundError(f"there is no model {repeated(name)}; `coord model list` shows them")
    if blocks.end > model.manifest.n_blocks:
        raise InvalidRequestError(
            f"blocks {blocks} of {model.name}, which has {model.manifest.n_blocks}: choose within "
            f"0:{model.manifest.n_blocks}"
        )
    return model


def moved(
    state: ClusterState, model: ModelRecord, blocks: BlockRange, giver: WorkerRecord, taker: WorkerRecord
) -> Pin:
    """The pin by which `taker` takes the blocks from `giver`, beside what it holds of the model already.

    Raises:
        ConflictError: the giver lacks them or would be left with two ranges, or the taker would have two.
    """
    if giver.worker_id == taker.worker_id:
        raise ConflictError(f"{giver.worker_id} can't take blocks from itself; name another worker")
    held = " and ".join(str(span.blocks) for span in spans_of(model, giver.assignment.spans)) or "nothing"
    if spans_without(state, giver, model.name, blocks) is None:
        raise ConflictError(
            f"{giver.worker_id} holds {held} of {model.name}: blocks to move must be at one end of what it "
            "holds, or all of it, since a worker holds one range of a model"
        )
    if giver.announced_blocks is not None and giver.pin is None:
        raise ConflictError(
            f"{giver.worker_id} was started with --blocks {giver.announced_blocks}; start it without, and then move"
        )
    own = next((span.blocks for span in spans_of(model, taker.assignment.spans)), blocks)
    if own.end < blocks.start or blocks.end < own.start:
        raise ConflictError(
            f"{taker.worker_id} holds {own} of {model.name}, which doesn't adjoin {blocks}: a worker holds one "
            "range of a model; pin it to another one first"
        )
    whole = BlockRange(min(own.start, blocks.start), max(own.end, blocks.end))
    return Pin(model=model.name, blocks=whole, by="", takes_from=giver.worker_id, taken=blocks)


def consequences(state: ClusterState, worker: WorkerRecord, model: ModelRecord, pin: Pin) -> Consequences:
    """What would follow from the pin, once all is loaded. Takes as long as a placement."""
    held = _held(state)
    refusal = _why_not(worker, model, pin)
    device = worker.device
    if device is None:
        empty: Speeds = dict.fromkeys(state.models)
        return Consequences(
            needed_bytes=0, capacity_bytes=0, now=empty, then=empty, changes={}, refusal=refusal, loses=""
        )
    first = {w: placed.spans for w, placed in placement(_with_pin(state, worker, pin)).items()}
    changes = {w: spans for w, spans in first.items() if spans != held.get(w, spans)}
    after = held | changes | _given_up(state, model, pin)
    return Consequences(
        needed_bytes=_needed_bytes(worker, device, model, pin.blocks),
        capacity_bytes=capacity_bytes(device),
        now=_speeds(state, held),
        then=_speeds(state, after),
        changes={w: spans for w, spans in after.items() if spans != held[w]},
        refusal=refusal,
        loses=_loses(state, held, changes, _given_up(state, model, pin)),
    )


def _why_not(worker: WorkerRecord, model: ModelRecord, pin: Pin) -> str:
    if worker.trust.level in ("banned", "quarantined"):
        return (
            f"{worker.worker_id} is {worker.trust.level}: nothing is routed to it; `coord trust pardon` ends that"
        )
    if worker.device is None:
        return f"{worker.worker_id} hasn't said how much memory it has; it does so when it connects"
    needed, capacity = _needed_bytes(worker, worker.device, model, pin.blocks), capacity_bytes(worker.device)
    if needed > capacity:
        return (
            f"blocks {pin.blocks} of {model.name} need {needed / 1e9:.3f} GB with a short cache, and "
            f"{worker.worker_id} has {capacity / 1e9:.3f} GB for blocks: choose fewer blocks, or give it more "
            "memory (--memory)"
        )
    return ""


def _needed_bytes(worker: WorkerRecord, device: DeviceReport, model: ModelRecord, blocks: BlockRange) -> int:
    held_as = fitting_quantization(worker, model, blocks) or device.held_as
    return span_bytes(model.manifest, blocks, held_as, KV_TARGETS[-1], device.kv_precision)


def _with_pin(state: ClusterState, worker: WorkerRecord, pin: Pin) -> ClusterState:
    workers = {**state.workers, worker.worker_id: replace(worker, pin=pin)}
    return replace(state, workers=workers, pins={**state.pins, worker.worker_id: pin})


def _given_up(state: ClusterState, model: ModelRecord, pin: Pin) -> dict[WorkerId, Spans]:
    if pin.takes_from is None or pin.taken is None:
        return {}
    left = spans_without(state, state.workers[pin.takes_from], model.name, pin.taken)
    return {} if left is None else {pin.takes_from: left}


def _held(state: ClusterState) -> dict[WorkerId, Spans]:
    return {
        w.worker_id: w.assignment.spans
        for w in state.workers.values()
        if w.counts_as_holder and w.device is not None
    }


def _speeds(state: ClusterState, held: Mapping[WorkerId, Spans]) -> Speeds:
    return Layout.of(state, held).speeds if held else dict.fromkeys(state.models)


def _loses(
    state: ClusterState,
    held: Mapping[WorkerId, Spans],
    first: Mapping[WorkerId, Spans],
    given_up: Mapping[WorkerId, Spans],
) -> str:
    """Blocks that nobody would hold in the end; else what isn't served until others, or the same, have loaded."""
    lost = []
    for model in state.models.values():
        n_now, n_then = (_n_holders(model, spans) for spans in (held, {**held, **first, **given_up}))
        is_lost = [now > 0 and then == 0 for now, then in zip(n_now, n_then, strict=True)]
        lost += [f"{blocks} of {model.name}" for blocks, is_one in runs(is_lost) if is_one]
    if lost:
        return f"nobody would hold blocks {listed(lost)} any more"
    if not is_safe(state, {w: spans for w, spans in first.items() if spans != state.workers[w].assignment.spans}):
        return (
            "the last copy of blocks would be dropped before others have loaded them: generations would have to "
            "wait"
        )
    if not is_safe(all_ready(state, first), given_up):
        return (
            f"{listed(list(given_up))} has too little memory to load what is left to it beside what it serves: "
            "generations would have to wait until it has"
        )
    return ""


def _n_holders(model: ModelRecord, held: Mapping[WorkerId, Spans]) -> list[int]:
    ranges = (span.blocks for spans in held.values() for span in spans_of(model, spans))
    return counts(ranges, model.manifest.n_blocks)
