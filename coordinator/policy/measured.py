"""What workers measure of their blocks, without what the last of them runs beside those.

A worker divides what a step took by its blocks, and the last one's step has the final norm and the head in it.
"""

from __future__ import annotations

from dataclasses import replace

from coordinator.policy.sizing import MAX_DECODE_S, end_in_blocks
from coordinator.policy.state import ClusterState, WorkerRecord
from protocol.control_messages import Heartbeat


def with_beat(state: ClusterState, worker: WorkerRecord, beat: Heartbeat) -> WorkerRecord:
    """The worker with this heartbeat, and its time a block as of blocks alone.

    What is said again, since nothing ran in between, was measured on the blocks that the worker had then.
    """
    said_s, old, block_s = beat.decode_s_per_block, worker.heartbeat, worker.block_s
    if old is None or said_s != old.decode_s_per_block:
        block_s = said_s / (1 + _end_share(state, worker)) if 0 < said_s < MAX_DECODE_S else 0.0
    return replace(worker, heartbeat=beat, block_s=block_s)


def _end_share(state: ClusterState, worker: WorkerRecord) -> float:
    """What comes after a model's last block, by the time of the blocks that the worker runs before it."""
    served = worker.served
    model = state.models.get(served[0].model) if len(served) == 1 else None
    if model is None or worker.device is None or not model.manifest.is_last(served[0].blocks):
        return 0.0
    return end_in_blocks(worker.device, model.manifest, served[0].quantization) / len(served[0].blocks)
