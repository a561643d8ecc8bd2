"""How long a step takes from one worker to another, as far as anybody measured it."""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.policy.state import WorkerRecord
from protocol.ids import WorkerId

LINK_S = 0.0005
"""One way to the next worker where no round trip was measured: a local network, and our own work for a hop."""

MAX_LINK_S = 60.0
"""A longer round trip is a mistake or a lie."""


def measured_links(worker: WorkerRecord) -> dict[WorkerId, float]:
    """One way to others, in seconds, as measured from here; what can't be a round trip isn't taken for one."""
    measured = worker.heartbeat.round_trips_s if worker.heartbeat is not None else {}
    return {peer: rtt / 2 for peer, rtt in measured.items() if 0 <= rtt < MAX_LINK_S}


def known_links(workers: Sequence[WorkerRecord]) -> dict[WorkerId, dict[WorkerId, float]]:
    """One way from each to each that either end has measured: as measured from there, else from the other end."""
    links: dict[WorkerId, dict[WorkerId, float]] = {worker.worker_id: {} for worker in workers}
    measured = [(w.worker_id, peer, s) for w in workers for peer, s in measured_links(w).items() if peer in links]
    for start, end, seconds in measured:
        links[end][start] = seconds
    for start, end, seconds in measured:
        links[start][end] = seconds
    return links


def links_among(workers: Sequence[WorkerRecord]) -> list[list[float]]:
    """One way from each to each, by place: as either end has measured it, else `LINK_S`."""
    known = known_links(workers)
    return [[known[a.worker_id].get(b.worker_id, LINK_S) for b in workers] for a in workers]
