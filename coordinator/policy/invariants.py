"""What must always hold of a state, and between one and the next: asserted by tests and by the simulator."""

from __future__ import annotations

from coordinator.policy.state import ClusterState, WorkerRecord
from coordinator.policy.statuses import span_in
from coordinator.policy.trust import NO_RECORD


def check(state: ClusterState) -> None:
    """Assert every invariant of a state; for tests and for the simulator.

    Raises:
        AssertionError: one is broken.
    """
    for name, model in state.models.items():
        assert name == model.name
    for worker_id, worker in state.workers.items():
        assert worker_id == worker.worker_id
        check_worker(worker)
        assert worker.pin == state.pins.get(worker_id), f"{worker_id} is pinned to {worker.pin}"
        check_trust(state, worker)
        check_assignment(state, worker)


def check_step(before: ClusterState, after: ClusterState) -> None:
    """Assert what must hold between a state and the one that follows it: epochs tell assignments apart, and rise.

    Raises:
        AssertionError: it doesn't hold.
    """
    for worker_id in before.workers.keys() & after.workers.keys():
        old, new = before.workers[worker_id].assignment, after.workers[worker_id].assignment
        assert new.epoch >= old.epoch, f"{worker_id}: epoch {old.epoch} -> {new.epoch}"
        assert new.epoch > old.epoch or new.spans == old.spans, f"{worker_id}: epoch {new.epoch} for other spans"


def check_trust(state: ClusterState, worker: WorkerRecord) -> None:
    """Assert that what routing and placement go by is what is kept of the worker's trust."""
    record = state.trust.get(worker.worker_id, NO_RECORD)
    level = worker.trust.level
    assert 0.0 <= worker.trust.score <= 1.0, f"{worker.worker_id}: score {worker.trust.score}"
    assert (level == "banned") == (record.banned_reason is not None), f"{worker.worker_id} is {level}"
    assert level == "banned" or (level == "quarantined") == record.is_quarantined, f"{worker.worker_id} is {level}"
    assert level != "banned" or worker.presence == "gone", f"{worker.worker_id} is banned and {worker.presence}"


def check_worker(worker: WorkerRecord) -> None:
    """Assert what must hold of a worker by itself."""
    assert worker.presence != "here" or worker.is_connected
    assert worker.presence != "gone" or not worker.is_connected
    is_away = worker.presence == "suspect" or worker.kept_until_s is not None
    assert not worker.is_doubted or is_away or worker.is_shut_out
    assert worker.kept_until_s is None or (worker.has_said_leaving and worker.presence not in ("lost", "gone"))
    assert worker.starts_by_s is None or worker.presence not in ("lost", "gone")
    assert worker.departure is None or not worker.departure.is_own_wish or worker.has_said_leaving
    assert worker.departure is None or (not worker.is_draining and worker.presence not in ("lost", "gone"))
    assert not worker.is_connected or worker.device is not None
    assert not worker.is_connected or worker.presence in ("here", "suspect", "lost")
    for status in worker.reported:
        assert span_in(status) in worker.assignment.spans, "a report of what isn't assigned"


def check_assignment(state: ClusterState, worker: WorkerRecord) -> None:
    """Assert what must hold of what a worker is to hold and serves."""
    spans, leaving = worker.assignment.spans, worker.assignment.leaving
    assert not leaving or len(worker.ready) < len(spans), f"{worker.worker_id} serves {leaving} for nothing"
    served = [span.model for span in worker.served]
    assert len(set(served)) == len(served), f"{worker.worker_id} serves two spans of one model: {worker.served}"
    assert worker.assignment.epoch > 0 or not spans
    assert worker.presence != "gone" or not spans
    for span in (*spans, *leaving):
        model = state.models.get(span.model)
        assert model is not None, f"{worker.worker_id} holds {span.model}, which there isn't"
        assert model.revision == span.revision
        assert span.blocks.end <= model.manifest.n_blocks
    for i, span in enumerate(spans):
        for other in spans[:i]:
            same = (other.model, other.revision) == (span.model, span.revision)
            assert not same or not other.blocks.overlaps(span.blocks), f"{other} and {span} overlap"
