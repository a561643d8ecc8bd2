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


def links_among(workers: Sequence[WorkerRecord]) -> list[list[float]]:
    """One way from each to each, by place: as measured from there, else from the other end, else `LINK_S`."""
    places = {worker.worker_id: i for i, worker in enumerate(workers)}
    links = [[LINK_S] * len(workers) for _ in workers]
    measured = [
        (i, places[peer], s)
        for i, w in enumerate(workers)
        for peer, s in measured_links(w).items()
        if peer in places
    ]
    for start, end, seconds in measured:
        links[end][start] = seconds
    for start, end, seconds in measured:
        links[start][end] = seconds
    return links
