"""Audits in the database: what they found, and the answers of trusted workers that later ones are compared with."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import cast, get_args

from sqlalchemy import and_, delete, not_, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from coordinator.audit_tables import AuditAnswerRow, AuditFindingRow
from coordinator.policy.audit_probe import N_POSITIONS, N_SUMS, Projection
from coordinator.policy.audit_rules import Held
from coordinator.transactions import Transactions
from protocol.audit_rest import AuditInfo
from protocol.ids import BlockRange, ModelName, Revision, WorkerId
from protocol.messages import KvPrecision, WeightFormat

MAX_FINDINGS = 1000
"""Of audits that went well, and as many of others: in a large fleet the former fill a thousand within minutes."""
WENT_WELL = ("passed", "undecided")
MAX_ANSWERS = 32
"""Of one range of blocks, held in one way: more seeds are harder to remember for who would answer from memory."""
MAX_ANSWERS_OF_ONE = 8
"""Of those, of one worker: two that agree on something else can't push all others out."""
MAX_ANSWERS_IN_ALL = 4000
"""6 kB each, so 25 MB: 125 ranges in full; they and revisions come and go."""
_FORM = struct.Struct(f"<{N_POSITIONS * N_SUMS}d")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedAnswer:
    """What a worker that was trusted then answered."""

    held: Held
    seed: str
    worker_id: WorkerId
    projection: Projection


class AuditStore:
    """All that is kept of audits."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    async def save(self, info: AuditInfo, at: datetime) -> None:
        """Keep what an audit found; the oldest go."""
        async with self._transactions.writing() as session:
            session.add(
                AuditFindingRow(
                    at=at,
                    worker_id=info.worker_id,
                    partner=info.partner,
                    referee=info.referee,
                    model=info.model,
                    block_start=info.blocks.start,
                    block_end=info.blocks.end,
                    outcome=info.outcome,
                    partner_outcome=info.partner_outcome,
                    difference=info.difference,
                    allowed=info.allowed,
                    reason=info.reason.replace("\x00", ""),
                )
            )
            await session.flush()
            went_well = and_(AuditFindingRow.outcome.in_(WENT_WELL), AuditFindingRow.partner_outcome.in_(WENT_WELL))
            like_it = went_well if {info.outcome, info.partner_outcome} <= set(WENT_WELL) else not_(went_well)
            newest = select(AuditFindingRow.id).where(like_it).order_by(AuditFindingRow.id.desc())
            oldest_kept = (await session.scalars(newest.offset(MAX_FINDINGS - 1).limit(1))).first()
            if oldest_kept is not None:
                await session.execute(delete(AuditFindingRow).where(like_it, AuditFindingRow.id < oldest_kept))

    async def newest(
        self, n_audits: int, *, before_id: int | None = None, worker: str | None = None
    ) -> tuple[tuple[int, AuditInfo], ...]:
        """What the newest audits found, each with its number, newest first.

        `before_id`: only those before this one. `worker`: only those in which a worker whose id begins so was
        audited or compared with another.
        """
        query = select(AuditFindingRow).order_by(AuditFindingRow.id.desc()).limit(n_audits)
        if before_id is not None:
            query = query.where(AuditFindingRow.id < before_id)
        if worker is not None:
            columns = (AuditFindingRow.worker_id, AuditFindingRow.partner)
            query = query.where(or_(*(column.startswith(worker, autoescape=True) for column in columns)))
        async with self._transactions.reading() as session:
            return tuple((row.id, _info(row)) for row in await session.scalars(query))

    async def record(self, revision: Revision, blocks: BlockRange, answer: RecordedAnswer, at: datetime) -> None:
        """Keep an answer; the oldest of the same blocks go."""
        async with self._transactions.writing() as session:
            session.add(
                AuditAnswerRow(
                    at=at,
                    revision=revision,
                    block_start=blocks.start,
                    block_end=blocks.end,
                    weights=answer.held.weights,
                    kv=answer.held.kv,
                    seed=answer.seed,
                    worker_id=answer.worker_id,
                    projection=_FORM.pack(*(value for row in answer.projection for value in row)),
                )
            )
            await session.flush()
            await _drop_oldest(session, revision, blocks, answer)

    async def recorded(self, revision: Revision, blocks: BlockRange) -> tuple[RecordedAnswer, ...]:
        """All answers that are kept of these blocks."""
        query = select(AuditAnswerRow).where(
            AuditAnswerRow.revision == revision,
            AuditAnswerRow.block_start == blocks.start,
            AuditAnswerRow.block_end == blocks.end,
        )
        async with self._transactions.reading() as session:
            return tuple(_answer(row) for row in await session.scalars(query) if len(row.projection) == _FORM.size)


async def _drop_oldest(
    session: AsyncSession, revision: Revision, blocks: BlockRange, answer: RecordedAnswer
) -> None:
    held = answer.held
    same = (
        AuditAnswerRow.revision == revision,
        AuditAnswerRow.block_start == blocks.start,
        AuditAnswerRow.block_end == blocks.end,
        AuditAnswerRow.weights == held.weights,
        AuditAnswerRow.kv == held.kv if held.kv is not None else AuditAnswerRow.kv.is_(None),
    )
    of_one = (*same, AuditAnswerRow.worker_id == answer.worker_id)
    for which, n_kept in ((of_one, MAX_ANSWERS_OF_ONE), (same, MAX_ANSWERS), ((), MAX_ANSWERS_IN_ALL)):
        newest = select(AuditAnswerRow.id).where(*which).order_by(AuditAnswerRow.id.desc())
        oldest_kept = (await session.scalars(newest.offset(n_kept - 1).limit(1))).first()
        if oldest_kept is not None:
            await session.execute(delete(AuditAnswerRow).where(*which, AuditAnswerRow.id < oldest_kept))


def _info(row: AuditFindingRow) -> AuditInfo:
    return AuditInfo(
        at=row.at.isoformat(timespec="seconds"),
        worker_id=WorkerId(row.worker_id),
        partner=row.partner,
        referee=row.referee,
        model=ModelName(row.model),
        blocks=BlockRange(row.block_start, row.block_end),
        outcome=row.outcome,  # type: ignore[arg-type]  # as `save` left it
        partner_outcome=row.partner_outcome,  # type: ignore[arg-type]
        difference=row.difference,
        allowed=row.allowed,
        reason=row.reason,
    )


def _answer(row: AuditAnswerRow) -> RecordedAnswer:
    values: Sequence[float] = _FORM.unpack(row.projection)
    assert row.weights in get_args(WeightFormat)  # as `record` left it
    return RecordedAnswer(
        held=Held(weights=cast(WeightFormat, row.weights), kv=cast(KvPrecision | None, row.kv)),
        seed=row.seed,
        worker_id=WorkerId(row.worker_id),
        projection=tuple(tuple(values[start : start + N_SUMS]) for start in range(0, len(values), N_SUMS)),
    )
