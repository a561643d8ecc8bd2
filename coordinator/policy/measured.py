"""What workers measure of their blocks, without what the last of them runs beside those.

A worker divides what a step took by its blocks, and the last one's step has the final norm and the head in it.
Since 1.2 it says how much of these is in its average (`Heartbeat.ends_per_block`). Of who doesn't, all steps are
taken to have run its whole span.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from coordinator.policy.sizing import MAX_DECODE_S, MIN_DECODE_S, end_in_blocks
from coordinator.policy.state import ClusterState, WorkerRecord
from protocol.control_messages import Heartbeat, SpanAssignment
from protocol.ids import Revision
from protocol.messages import Quantization


def with_beat(state: ClusterState, worker: WorkerRecord, beat: Heartbeat) -> WorkerRecord:
    """The worker with this heartbeat, and its time a block as of blocks alone.

    What is said again, since nothing ran in between, was measured on the blocks that the worker had then. Who has
    begun anew (0.0) is as fast as before until something runs, if all that was measured is of the weights it holds.
    """
    said_s, old = beat.decode_s_per_block, worker.heartbeat
    worker = replace(worker, heartbeat=beat)
    if said_s == 0.0:
        measured_of = worker.measured_of
        is_of_same = len(measured_of) == 1 and _weights(worker.assignment.spans) <= measured_of
        return worker if is_of_same else replace(worker, block_s=0.0, measured_of=frozenset())
    if old is not None and said_s == old.decode_s_per_block:
        return worker
    is_sound = MIN_DECODE_S <= said_s < MAX_DECODE_S
    block_s = said_s / (1 + _end_share(state, worker, beat)) if is_sound else 0.0
    return replace(worker, block_s=block_s, measured_of=_weights(worker.served))


def unmeasured(worker: WorkerRecord) -> WorkerRecord:
    """The worker without what changes from one heartbeat to the next and decides nothing by itself.

    That is when it was heard, what it measured, and how wrong its clock is or since when it is right, but for
    whether it lets sessions in, and whether it did so all the time lately.
    """
    return replace(
        worker,
        seen_s=0.0,
        heartbeat=None,
        block_s=0.0,
        measured_of=frozenset(),
        clock_offset_s=math.inf if worker.takes_no_tickets else 0.0,
        right_since_s=None if worker.right_since_s is None else 0.0,
        files=frozenset(),
        trust=replace(worker.trust, score=0.0),  # its level says what follows
    )


def _weights(spans: Iterable[SpanAssignment]) -> frozenset[tuple[Revision, Quantization | None]]:
    return frozenset((span.revision, span.quantization) for span in spans)


def _end_share(state: ClusterState, worker: WorkerRecord, beat: Heartbeat) -> float:
    """What comes after a model's last block, by the time of the blocks that the worker runs before it."""
    served = worker.served
    if worker.device is None or len(_weights(served)) != 1 or served[0].model not in state.models:
        return 0.0
    manifest, ends = state.models[served[0].model].manifest, beat.ends_per_block
    if ends is None or not 0 <= ends <= 1:
        ends = 1 / len(served[0].blocks) if len(served) == 1 and manifest.is_last(served[0].blocks) else 0.0
    return ends * end_in_blocks(worker.device, manifest, served[0].quantization)
