"""What a route saves that goes over workers which hold the beginning of a session's text."""

from __future__ import annotations

from collections.abc import Iterable

from coordinator.policy.routing import Held
from coordinator.policy.segments import ANSWER_TOKENS
from coordinator.policy.sizing import MAX_DECODE_S
from coordinator.policy.state import ClusterState, WorkerRecord
from protocol.ids import BlockRange, WorkerId
from protocol.manifest import Manifest


def held_stages(
    state: ClusterState,
    manifest: Manifest,
    stages: Iterable[tuple[WorkerId, int, int]],
    *,
    n_positions: int,
    max_tokens: int,
) -> Held:
    """What each stage of an earlier session saves, in seconds a token, if `n_positions` needn't be run there."""
    n_tokens = min(max_tokens, ANSWER_TOKENS)
    saved = {}
    for worker_id, start, end in stages:
        worker = state.workers.get(worker_id)
        if worker is not None and worker.device is not None:
            seconds = n_positions * (end - start) * prefill_s_per_token_block(worker, manifest)
            saved[worker_id, BlockRange(start, end)] = seconds / n_tokens
    return saved


def prefill_s_per_token_block(worker: WorkerRecord, manifest: Manifest) -> float:
    """Seconds that one token of a prompt takes in one block: as measured, else by the device's speed."""
    beat = worker.heartbeat
    if beat is not None and 0 < beat.prefill_s_per_token_block < MAX_DECODE_S:
        return beat.prefill_s_per_token_block
    assert worker.device is not None
    n_parameters = sum(block.n_parameters for block in manifest.blocks) / len(manifest.blocks)
    return 2 * n_parameters / max(worker.device.flops_per_s, 1.0)
