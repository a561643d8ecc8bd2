"""The database as the simulation has it: rows that effects write, and what a restarted coordinator would read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from coordinator.policy.effects import (
    DeleteModel,
    Effect,
    SaveAssignment,
    SaveModel,
    SaveWorker,
    SendToWorker,
    WriteAudit,
)
from coordinator.policy.state import ClusterState, ModelRecord
from coordinator.policy.stored import StoredState, StoredWorker
from protocol.ids import ModelName, WorkerId


@dataclass(slots=True)
class SimulatedStore:
    """Rows by key."""

    workers: dict[WorkerId, StoredWorker] = field(default_factory=dict)
    models: dict[ModelName, ModelRecord] = field(default_factory=dict)

    def save(self, effects: Iterable[Effect]) -> None:
        """Write what is to be kept, in order; a row that names what isn't there is an error, as in a database."""
        for effect in effects:
            match effect:
                case SaveWorker():
                    self._save_worker(effect)
                case SaveAssignment():
                    self._save_assignment(effect)
                case SaveModel(name=name):
                    self.models[name] = ModelRecord(
                        name=name,
                        revision=effect.revision,
                        manifest=effect.manifest,
                        n_replicas=effect.n_replicas,
                    )
                case DeleteModel(name=name):
                    named = [w.worker_id for w in self.workers.values() for s in w.spans if s.model == name]
                    assert not named, f"{name} is deleted while {named} hold it"
                    del self.models[name]
                case WriteAudit() | SendToWorker():
                    pass

    def stored(self) -> StoredState:
        """What the repository would load."""
        return StoredState(workers=tuple(self.workers.values()), models=tuple(self.models.values()))

    def check(self, state: ClusterState) -> None:
        """Assert that nothing of the state that must survive a restart is missing."""
        assert dict(self.models) == dict(state.models)
        for worker_id, worker in state.workers.items():
            self.check_worker(state, worker_id)
            assert (self.workers[worker_id].status == "gone") == (worker.presence == "gone")
            assert (self.workers[worker_id].status == "departing") == (
                worker.departure is not None and not worker.departure.is_own_wish
            )

    def check_worker(self, state: ClusterState, worker_id: WorkerId) -> None:
        """Assert the same of one worker."""
        row, assignment = self.workers[worker_id], state.workers[worker_id].assignment
        assert row.spans == assignment.spans, f"{worker_id}'s spans aren't saved"
        # of a worker that was forgotten and enrols again, the row has an epoch still
        assert row.epoch == assignment.epoch or (row.epoch > assignment.epoch == 0), (
            f"{worker_id}'s epoch isn't saved"
        )

    def _save_worker(self, effect: SaveWorker) -> None:
        old = self.workers.get(effect.worker_id)
        row = StoredWorker(
            worker_id=effect.worker_id,
            status=effect.status,
            hostname=effect.hostname,
            url=effect.url,
            device=effect.device,
            seen_s=effect.seen_s,
            starts_by_s=effect.starts_by_s,
        )
        if old is not None:
            row = replace(row, epoch=old.epoch, spans=old.spans, reason=old.reason)
        self.workers[effect.worker_id] = row

    def _save_assignment(self, effect: SaveAssignment) -> None:
        for span in effect.spans:
            assert self.models[span.model].revision == span.revision
        row = self.workers[effect.worker_id]
        self.workers[effect.worker_id] = replace(row, epoch=effect.epoch, spans=effect.spans, reason=effect.reason)
