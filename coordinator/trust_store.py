"""Trust in the database: what is kept of each worker, its newest events one by one, and older ones summed up."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec
from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from coordinator.policy.effects import DeleteTrust, SaveTrust, SumUpTrustEvents, WriteTrustEvent
from coordinator.policy.trust import Opinion, TrustRecord
from coordinator.tables import TrustEventRow, TrustRow, TrustSummaryRow
from protocol.errors import StorageError
from protocol.ids import WorkerId
from protocol.trust_rest import TrustEventInfo, TrustSummary

TrustEffect = SaveTrust | DeleteTrust | WriteTrustEvent | SumUpTrustEvents


def persist_trust(session: Session, effect: TrustEffect) -> None:
    """Carry out one effect."""
    match effect:
        case SaveTrust():
            _save(session, effect)
        case DeleteTrust(worker_id=worker_id):
            for table in (TrustRow, TrustEventRow, TrustSummaryRow):
                session.execute(delete(table).where(table.worker_id == worker_id))
        case WriteTrustEvent():
            session.add(_event_row(effect))
        case SumUpTrustEvents(worker_id=worker_id, n_kept=n_kept):
            _sum_up(session, worker_id, n_kept)


async def load_trust(session: AsyncSession) -> Mapping[WorkerId, TrustRecord]:
    """What is kept of every worker.

    Raises:
        StorageError: it isn't what this version writes.
    """
    return {WorkerId(row.worker_id): _record(row) for row in await session.scalars(select(TrustRow))}


async def trust_history(
    session: AsyncSession, worker_id: WorkerId, n_events: int
) -> tuple[tuple[TrustEventInfo, ...], tuple[TrustSummary, ...]]:
    """The newest events of a worker, newest first, and what older ones came to."""
    newest = select(TrustEventRow).where(TrustEventRow.worker_id == worker_id).order_by(TrustEventRow.id.desc())
    sums = select(TrustSummaryRow).where(TrustSummaryRow.worker_id == worker_id).order_by(TrustSummaryRow.kind)
    return (
        tuple(_event_info(row) for row in await session.scalars(newest.limit(n_events))),
        tuple(
            TrustSummary(
                kind=row.kind,
                n_events=row.n_events,
                weight=row.weight,
                first_at=row.first_at.isoformat(timespec="seconds"),
                last_at=row.last_at.isoformat(timespec="seconds"),
            )
            for row in await session.scalars(sums)
        ),
    )


def _save(session: Session, effect: SaveTrust) -> None:
    row = session.get(TrustRow, effect.worker_id)
    if row is None:
        row = TrustRow(worker_id=effect.worker_id)
        session.add(row)
    record = effect.record
    row.opinions = msgspec.to_builtins(record.opinions)
    row.is_quarantined = record.is_quarantined
    row.quarantine_reason = _storable(record.quarantine_reason)
    row.pinned = record.pinned
    row.banned_reason = None if record.banned_reason is None else _storable(record.banned_reason)
    row.n_events = record.n_events
    row.accused_ago = list(record.accused_ago)


def _record(row: TrustRow) -> TrustRecord:
    try:
        opinions: tuple[Opinion, ...] = msgspec.convert(row.opinions, tuple[Opinion, ...])
        accused_ago: tuple[int, ...] = msgspec.convert(row.accused_ago, tuple[int, ...])
    except msgspec.ValidationError as exc:
        raise StorageError(f"what the database holds of worker {row.worker_id}'s trust isn't known here") from exc
    return TrustRecord(
        opinions=opinions,
        is_quarantined=row.is_quarantined,
        quarantine_reason=row.quarantine_reason,
        pinned=row.pinned,
        banned_reason=row.banned_reason,
        n_events=row.n_events,
        accused_ago=accused_ago,
    )


def _event_row(effect: WriteTrustEvent) -> TrustEventRow:
    return TrustEventRow(
        worker_id=effect.worker_id,
        at=datetime.fromtimestamp(effect.at_s, UTC),
        kind=effect.kind,
        reporter=effect.reporter[:128],
        weight=effect.weight,
        score_before=effect.score_before,
        score_after=effect.score_after,
        reason=_storable(effect.reason),
    )


def _event_info(row: TrustEventRow) -> TrustEventInfo:
    return TrustEventInfo(
        at=row.at.isoformat(timespec="seconds"),
        kind=row.kind,
        reporter=row.reporter,
        weight=row.weight,
        score_before=row.score_before,
        score_after=row.score_after,
        reason=row.reason,
    )


def _sum_up(session: Session, worker_id: WorkerId, n_kept: int) -> None:
    """Have one row a kind stand for all but the newest `n_kept` events."""
    session.flush()
    newest = select(TrustEventRow.id).where(TrustEventRow.worker_id == worker_id).order_by(TrustEventRow.id.desc())
    oldest_kept = session.scalars(newest.offset(n_kept - 1).limit(1)).first()
    if oldest_kept is None:
        return
    old = (TrustEventRow.worker_id == worker_id, TrustEventRow.id < oldest_kept)
    sums = session.execute(
        select(
            TrustEventRow.kind,
            func.count(),
            func.sum(TrustEventRow.weight),
            func.min(TrustEventRow.at),
            func.max(TrustEventRow.at),
        )
        .where(*old)
        .group_by(TrustEventRow.kind)
    )
    for kind, n_events, weight, first_at, last_at in sums.all():
        _add_up(
            session,
            TrustSummaryRow(
                worker_id=worker_id, kind=kind, n_events=n_events, weight=weight, first_at=first_at, last_at=last_at
            ),
        )
    session.execute(delete(TrustEventRow).where(*old))


def _add_up(session: Session, part: TrustSummaryRow) -> None:
    whole = session.get(TrustSummaryRow, (part.worker_id, part.kind))
    if whole is None:
        session.add(part)
        return
    whole.n_events += part.n_events
    whole.weight += part.weight
    whole.first_at, whole.last_at = min(whole.first_at, part.first_at), max(whole.last_at, part.last_at)


def _storable(text: str) -> str:
    """Without the one character that PostgreSQL has no place for."""
    return text.replace("\x00", "")
