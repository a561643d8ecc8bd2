"""Effects of the policy to rows, and rows to the stored state. Called by the repository inside its transactions."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from coordinator.policy.effects import (
    DeleteModel,
    DeleteTrust,
    Persistent,
    SaveAssignment,
    SaveModel,
    SaveTrust,
    SaveWorker,
    SumUpTrustEvents,
    WorkerStatus,
    WriteAudit,
    WriteTrustEvent,
)
from coordinator.policy.state import ModelRecord, StoredState, StoredWorker
from coordinator.tables import AssignmentRow, AuditRow, ModelFileRow, ModelRow, WorkerRow
from coordinator.trust_store import load_trust, persist_trust
from protocol.control_messages import DeviceReport, SpanAssignment
from protocol.errors import StorageError
from protocol.ids import BlockRange, ModelName, Revision, WorkerId
from protocol.manifest import Manifest, ModelFile, decode_manifest, encode_manifest
from protocol.messages import Quantization


async def persist(session: AsyncSession, effect: Persistent) -> None:
    """Carry out one persistent effect."""
    match effect:
        case SaveWorker():
            await _save_worker(session, effect)
        case SaveAssignment():
            await _save_assignment(session, effect)
        case SaveModel():
            await _save_model(session, effect)
        case DeleteModel(name=name):
            await session.execute(delete(ModelRow).where(ModelRow.name == name))
        case SaveTrust() | DeleteTrust() | WriteTrustEvent() | SumUpTrustEvents():
            await persist_trust(session, effect)
        case WriteAudit(at_s=at_s, action=action, subject=subject, details=details):
            insert_audit(session, datetime.fromtimestamp(at_s, UTC), action, subject, details)
    await session.flush()


def insert_audit(session: AsyncSession, at: datetime, action: str, subject: str, details: str) -> None:
    """Append a line to the audit log."""
    session.add(AuditRow(at=at, action=action, subject=_storable(subject), details=_storable(details)))


async def load_stored_state(session: AsyncSession) -> StoredState:
    """Workers by id with their assignments, models in the order in which they were added.

    Raises:
        StorageError: a stored manifest doesn't match its revision.
    """
    models = [_model(row) for row in await session.scalars(select(ModelRow).order_by(ModelRow.id))]
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
    return StoredState(workers=tuple(workers), models=tuple(models), trust=await load_trust(session))


async def _save_worker(session: AsyncSession, effect: SaveWorker) -> None:
    row = await session.get(WorkerRow, effect.worker_id)
    if row is None:
        row = WorkerRow(worker_id=effect.worker_id, epoch=0, assignment_reason="")
        session.add(row)
    row.status = effect.status
    row.hostname = _storable(effect.hostname)
    row.url = _storable(effect.url)
    row.device = None if effect.device is None else msgspec.to_builtins(effect.device)
    row.seen_at = datetime.fromtimestamp(effect.seen_s, UTC)


async def _save_assignment(session: AsyncSession, effect: SaveAssignment) -> None:
    worker = await session.get_one(WorkerRow, effect.worker_id)
    worker.epoch = effect.epoch
    worker.assignment_reason = _storable(effect.reason)
    await session.execute(delete(AssignmentRow).where(AssignmentRow.worker_id == effect.worker_id))
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


async def _save_model(session: AsyncSession, effect: SaveModel) -> None:
    row = await session.scalar(select(ModelRow).where(ModelRow.name == effect.name))
    if row is None:
        row = ModelRow(name=effect.name)
        session.add(row)
    row.revision = effect.revision
    row.manifest = encode_manifest(effect.manifest)
    row.n_replicas = effect.n_replicas
    await session.flush()
    await session.execute(delete(ModelFileRow).where(ModelFileRow.model_id == row.id))
    for name, file in _files_by_name(effect.manifest).items():
        session.add(ModelFileRow(model_id=row.id, name=name, sha256=file.sha256, size_bytes=file.size_bytes))


def _files_by_name(manifest: Manifest) -> dict[str, ModelFile]:
    files = (*manifest.blocks, *manifest.before, *manifest.after, *manifest.auxiliary)
    return {file.name: file for file in files}


def _storable(text: str) -> str:
    """A worker's own words, without the one character that PostgreSQL has no place for."""
    return text.replace("\x00", "")


def _model(row: ModelRow) -> ModelRecord:
    try:
        manifest = decode_manifest(row.manifest, expected=Revision(row.revision))
    except Exception as exc:
        raise StorageError(
            f"the stored manifest of model {row.name} is damaged: remove and add the model again"
        ) from exc
    return ModelRecord(
        name=ModelName(row.name), revision=Revision(row.revision), manifest=manifest, n_replicas=row.n_replicas
    )


def _worker(row: WorkerRow, spans: tuple[SpanAssignment, ...]) -> StoredWorker:
    return StoredWorker(
        worker_id=WorkerId(row.worker_id),
        status=_status(row.status),
        hostname=row.hostname,
        url=row.url,
        device=_device(row.device),
        seen_s=row.seen_at.timestamp(),
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
