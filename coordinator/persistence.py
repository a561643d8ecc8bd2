"""Effects of the policy to rows, and rows to the stored state. Called by the repository inside its transactions."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from coordinator.acting import acting
from coordinator.log_tables import AuditRow
from coordinator.model_store import load_authors, load_models, persist_model
from coordinator.operator_store import is_move_asked, load_moving, load_pins, load_settings, persist_choice
from coordinator.policy.effects import (
    AuditView,
    DeleteAuthor,
    DeleteModel,
    DeletePin,
    DeleteSetting,
    DeleteTrust,
    DeleteWorker,
    Persistent,
    SaveAssignment,
    SaveAuthor,
    SaveModel,
    SaveMoveAsked,
    SaveMoving,
    SavePin,
    SaveSetting,
    SaveTrust,
    SaveWorker,
    SumUpTrustEvents,
    WorkerStatus,
    WriteAudit,
    WriteTrustEvent,
)
from coordinator.policy.stored import StoredState, StoredWorker
from coordinator.tables import AssignmentRow, WorkerRow
from coordinator.trust_store import load_trust, persist_trust
from protocol.control_messages import DeviceReport, SpanAssignment
from protocol.errors import StorageError
from protocol.ids import BlockRange, ModelName, Revision, WorkerId
from protocol.messages import Quantization


def persist(session: Session, effect: Persistent) -> None:
    """Carry out one persistent effect."""
    match effect:
        case SaveWorker():
            _save_worker(session, effect)
        case SaveAssignment():
            _save_assignment(session, effect)
        case SaveModel() | DeleteModel() | SaveAuthor() | DeleteAuthor():
            persist_model(session, effect)
        case SaveTrust() | DeleteTrust() | WriteTrustEvent() | SumUpTrustEvents():
            persist_trust(session, effect)
        case SavePin() | DeletePin() | SaveSetting() | DeleteSetting() | SaveMoveAsked() | SaveMoving():
            persist_choice(session, effect)
        case WriteAudit():
            at = datetime.fromtimestamp(effect.at_s, UTC)
            insert_audit(
                session,
                at,
                effect.action,
                effect.subject,
                effect.details,
                before=effect.before,
                after=effect.after,
            )
        case DeleteWorker(worker_id=worker_id):
            session.execute(delete(WorkerRow).where(WorkerRow.worker_id == worker_id))
    session.flush()


def insert_audit(
    session: AsyncSession | Session,
    at: datetime,
    action: str,
    subject: str,
    details: str,
    *,
    before: AuditView = None,
    after: AuditView = None,
) -> None:
    """Append a line to the audit log: who is acting now did this, and what was changed, as it was and as it is."""
    session.add(
        AuditRow(
            at=at,
            action=action,
            subject=_storable(subject),
            details=_storable(details),
            who=acting.get(),
            before=None if before is None else dict(before),
            after=None if after is None else dict(after),
        )
    )


async def load_stored_state(session: AsyncSession) -> StoredState:
    """Workers by id with their assignments, models in the order in which they were added.

    Raises:
        StorageError: a stored manifest doesn't match its revision.
    """
    spans: defaultdict[str, list[SpanAssignment]] = defaultdict(list)
    query = select(AssignmentRow).order_by(AssignmentRow.worker_id, AssignmentRow.position)
    for row in await session.scalars(query):
        blocks = BlockRange(row.start, row.end)
        span = SpanAssignment(
            model=ModelName(row.model),
            revision=Revision(row.revision),
            blocks=blocks,
            quantization=_quantization(row.quantization),
        )
        spans[row.worker_id].append(span)
    workers = [
        _worker(row, tuple(spans[row.worker_id]))
        for row in await session.scalars(select(WorkerRow).order_by(WorkerRow.worker_id))
    ]
    moving, moving_damage = await load_moving(session)
    return StoredState(
        workers=tuple(workers),
        models=await load_models(session),
        trust=await load_trust(session),
        authors=await load_authors(session),
        pins=await load_pins(session),
        settings=await load_settings(session),
        is_move_asked=await is_move_asked(session),
        moving=moving,
        moving_damage=moving_damage,
    )


def _save_worker(session: Session, effect: SaveWorker) -> None:
    row = session.get(WorkerRow, effect.worker_id)
    if row is None:
        row = WorkerRow(worker_id=effect.worker_id, epoch=0, assignment_reason="")
        session.add(row)
    row.status = effect.status
    row.hostname = _storable(effect.hostname)
    row.url = _storable(effect.url)
    row.device = None if effect.device is None else msgspec.to_builtins(effect.device)
    row.seen_at = datetime.fromtimestamp(effect.seen_s, UTC)
    row.starts_by = None if effect.starts_by_s is None else datetime.fromtimestamp(effect.starts_by_s, UTC)


def _save_assignment(session: Session, effect: SaveAssignment) -> None:
    worker = session.get_one(WorkerRow, effect.worker_id)
    worker.epoch = effect.epoch
    worker.assignment_reason = _storable(effect.reason)
    session.execute(delete(AssignmentRow).where(AssignmentRow.worker_id == effect.worker_id))
    for position, span in enumerate(effect.spans):
        row = AssignmentRow(
            worker_id=effect.worker_id,
            position=position,
            epoch=effect.epoch,
            model=span.model,
            revision=span.revision,
            start=span.blocks.start,
            end=span.blocks.end,
            quantization=span.quantization,
        )
        session.add(row)


def _storable(text: str) -> str:
    """A worker's own words, without the one character that PostgreSQL has no place for."""
    return text.replace("\x00", "")


def _worker(row: WorkerRow, spans: tuple[SpanAssignment, ...]) -> StoredWorker:
    return StoredWorker(
        worker_id=WorkerId(row.worker_id),
        status=_status(row.status),
        hostname=row.hostname,
        url=row.url,
        device=_device(row.device),
        seen_s=row.seen_at.timestamp(),
        starts_by_s=None if row.starts_by is None else row.starts_by.timestamp(),
        epoch=row.epoch,
        spans=spans,
        reason=row.assignment_reason,
    )


def _status(text: str) -> WorkerStatus:
    try:
        status: WorkerStatus = msgspec.convert(text, WorkerStatus)
    except msgspec.ValidationError as exc:
        raise StorageError(f"the database holds a worker in state {text[:40]!r}, which isn't known here") from exc
    return status


def _quantization(text: str | None) -> Quantization | None:
    try:
        quantization: Quantization | None = msgspec.convert(text, Quantization | None)
    except msgspec.ValidationError as exc:
        raise StorageError(f"the database holds blocks in {str(text)[:40]!r}, which isn't known here") from exc
    return quantization


def _device(stored: dict[str, Any] | None) -> DeviceReport | None:
    """What was announced last; None if another version wrote it: the worker announces it anew when it connects."""
    try:
        return None if stored is None else msgspec.convert(stored, DeviceReport)
    except msgspec.ValidationError:
        return None
