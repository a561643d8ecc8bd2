"""What a worker says of itself to its coordinator: when it connects, and with each heartbeat."""

from __future__ import annotations

import socket

from protocol.control_messages import Announce, Heartbeat
from protocol.version import program_version
from worker.config import WorkerConfig
from worker.engine import Engine
from worker.holdings import Holdings
from worker.machine import Machine
from worker.server import DataPlane


def announcement(config: WorkerConfig, url: str, machine: Machine, holdings: Holdings) -> Announce:
    """What there is to use, and what is held of it."""
    return Announce(
        url=url,
        hostname=socket.gethostname(),
        version=program_version(),
        device=machine.report(),
        epoch=holdings.epoch,
        spans=holdings.statuses,
        files=holdings.files,
        pinned_model=config.pinned_model,
        pinned_blocks=config.pinned_blocks,
        leaving=holdings.leaving,
    )


def heartbeat(engine: Engine, data_plane: DataPlane, holdings: Holdings, now_s: float) -> Heartbeat:
    """How busy the worker is, and how quick."""
    stats, measures = engine.stats(), engine.measures
    hop_p50_s, hop_p99_s = data_plane.hop_quantiles_s(0.5, 0.99)
    return Heartbeat(
        n_sessions=stats.n_sessions,
        n_queued=stats.n_waiting_sessions,
        free_kv_bytes=max(0, stats.kv_free_bytes),
        decode_s_per_block=measures.decode.s_per_block,
        ends_per_block=measures.decode.ends_per_block,
        prefill_s_per_token_block=measures.prefill_s_per_token_per_block.value,
        round_trips_s=data_plane.round_trips_s,
        hop_p50_s=hop_p50_s,
        hop_p99_s=hop_p99_s,
        links=data_plane.links,
        longest_sessions=holdings.longest_sessions(stats.kv_budget_bytes),
        time_s=now_s,
    )
