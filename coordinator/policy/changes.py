"""Small steps that transitions are made of: a state and the effects so far, in; the next such pair, out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from coordinator.policy.effects import (
    AuditAction,
    AuditView,
    Effect,
    SaveAssignment,
    SaveModel,
    SaveMoveAsked,
    SaveMoving,
    SaveWorker,
    SendToWorker,
    WorkerStatus,
    WriteAudit,
)
from coordinator.policy.handover import handed_over
from coordinator.policy.state import Assignment, ClusterState, ModelRecord, WorkerRecord
from coordinator.policy.statuses import status_as
from coordinator.policy.under_way import Moving
from protocol.control_messages import Assign, CoordinatorToWorker, SpanAssignment, SpanStatus
from protocol.ids import ModelName, WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A state on its way to the next, with what is to be done for it, in order."""

    state: ClusterState
    now_s: float
    effects: tuple[Effect, ...] = ()

    def then(self, *effects: Effect) -> Self:
        """The same with more to do."""
        return replace(self, effects=self.effects + effects)

    def audited(
        self, action: AuditAction, subject: str, details: str, *, before: AuditView = None, after: AuditView = None
    ) -> Self:
        """The same with a line for the audit log."""
        line = WriteAudit(
            at_s=self.now_s, action=action, subject=subject, details=details, before=before, after=after
        )
        return self.then(line)

    def to_place(self, *, is_news: bool = True) -> Self:
        """The same with something for placement to answer, once it has settled; a move ends with that.

        `is_news`: whether it is about who is there or what is served: then the next look comes as soon as ever.
        """
        change = self.stopped_moving("somebody came, went or failed, or a model changed")
        state, n_moves = change.state, 0 if is_news else self.state.n_moves
        return replace(
            change, state=replace(state, changed_s=self.now_s, n_changes=state.n_changes + 1, n_moves=n_moves)
        )

    def stopped_moving(self, why: str) -> Self:
        """The same with nobody being moved to something better any more. Who loads something goes on with that.

        A move that a restart cut short is kept: that all come back is what it waits for.
        """
        if self.state.moving is None or self.state.moving.is_cut:
            return self
        return self.with_moving(None).audited("moving_ended", "cluster", why).with_move_asked(is_asked=False)

    def with_moving(self, moving: Moving | None) -> Self:
        """The same with this being moved to, and kept."""
        return replace(self, state=replace(self.state, moving=moving)).then(SaveMoving(moving=moving))

    def with_move_asked(self, *, is_asked: bool) -> Self:
        """The same with it kept whether an operator's wish to have blocks placed anew is still to be done."""
        if self.state.is_move_asked == is_asked:
            return self
        change = replace(self, state=replace(self.state, is_move_asked=is_asked))
        return change.then(SaveMoveAsked(is_asked=is_asked))

    def with_model(self, model: ModelRecord) -> Self:
        """The same with this model, last if it is new."""
        return replace(self, state=replace(self.state, models={**self.state.models, model.name: model}))

    def without_model(self, name: ModelName) -> Self:
        """The same without this model."""
        models = {key: model for key, model in self.state.models.items() if key != name}
        return replace(self, state=replace(self.state, models=models))

    def with_worker(self, worker: WorkerRecord) -> Self:
        """The same with this worker as it is now."""
        workers = {**self.state.workers, worker.worker_id: worker}
        return replace(self, state=replace(self.state, workers=workers))

    def without_worker(self, worker_id: WorkerId) -> Self:
        """The same without this worker."""
        workers = {key: worker for key, worker in self.state.workers.items() if key != worker_id}
        return replace(self, state=replace(self.state, workers=workers))

    def updated(self, worker_id: WorkerId, **fields: Any) -> Self:
        """The same with other values in some fields of a worker."""
        return self.with_worker(replace(self.state.workers[worker_id], **fields))

    def sent(self, worker_id: WorkerId, message: CoordinatorToWorker) -> Self:
        """The same with a message for the worker, if it is connected."""
        if not self.state.workers[worker_id].is_connected:
            return self
        return self.then(SendToWorker(worker_id=worker_id, message=message))

    def assigned(self, worker_id: WorkerId, assignment: Assignment, *, dropped: ModelName | None = None) -> Self:
        """The same with a new assignment, saved and told to the worker. Reports of spans that stay are kept.

        What the worker serves on meanwhile is found out; of the model `dropped` it is nothing.
        """
        worker = self.state.workers[worker_id]
        assignment = handed_over(self.state, worker, assignment, dropped)
        reported = tuple(s for s in (_status_on(worker, span) for span in assignment.spans) if s is not None)
        change = self.updated(worker_id, assignment=assignment, reported=reported)
        return change.then(save_assignment(worker_id, assignment)).sent(worker_id, assign(assignment))

    def reassigned(
        self,
        worker_id: WorkerId,
        spans: tuple[SpanAssignment, ...],
        reason: str,
        *,
        dropped: ModelName | None = None,
    ) -> Self:
        """The same with other spans for the worker, under the next epoch."""
        old = self.state.workers[worker_id].assignment
        assignment = Assignment(epoch=old.epoch + 1, spans=spans, reason=reason)
        return self.assigned(worker_id, assignment, dropped=dropped)


def model_view(model: ModelRecord) -> dict[str, Any]:
    """What operators decide about a model, for the audit log."""
    return {
        "revision": model.revision,
        "n_replicas": model.n_replicas,
        "signed_by": None if model.signature is None else model.signature.statement.key,
        "pinned_ends": model.pinned_ends,
    }


def assign(assignment: Assignment) -> Assign:
    """The assignment as the worker is told."""
    return Assign(epoch=assignment.epoch, spans=assignment.spans, reason=assignment.reason)


def save_assignment(worker_id: WorkerId, assignment: Assignment) -> SaveAssignment:
    """The assignment as it is kept."""
    return SaveAssignment(
        worker_id=worker_id, epoch=assignment.epoch, spans=assignment.spans, reason=assignment.reason
    )


def save_model(model: ModelRecord) -> SaveModel:
    """The model as it is kept."""
    return SaveModel(
        name=model.name,
        revision=model.revision,
        manifest=model.manifest,
        n_replicas=model.n_replicas,
        signature=model.signature,
        pinned_ends=model.pinned_ends,
    )


def save_worker(worker: WorkerRecord) -> SaveWorker:
    """The worker as it is kept."""
    return SaveWorker(
        worker_id=worker.worker_id,
        status=_status(worker),
        hostname=worker.hostname,
        url=worker.url,
        device=worker.device,
        seen_s=worker.seen_s,
        starts_by_s=worker.starts_by_s if is_starting(worker) else None,
    )


def is_starting(worker: WorkerRecord) -> bool:
    """Whether it enrolled to connect soon, and hasn't said since that it doesn't come: then less is kept for it."""
    if worker.starts_by_s is None:
        return False
    return worker.kept_until_s is None or worker.kept_until_s >= worker.starts_by_s


def _status_on(worker: WorkerRecord, span: SpanAssignment) -> SpanStatus | None:
    """What is known of a span that goes on: what it served on the way out, it has ready."""
    if span in worker.assignment.leaving:
        return status_as(span, "ready", "")
    return worker.status_of(span)


def _status(worker: WorkerRecord) -> WorkerStatus:
    if worker.presence == "gone":
        return "gone"
    if worker.departure is not None and not worker.departure.is_own_wish:
        return "departing"
    # one that was stopped may be back, and is awaited after a restart of ours too
    if worker.is_draining and worker.kept_until_s is None:
        return "draining"
    return "enrolled" if worker.device is None else "present"
