"""Generations as rows, with what is held and used of their keys' limits: begun and finished, many at once.

Called within the transactions of others; `quota_clock` is read once it is a transaction's turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from coordinator.policy.quota import MAX_CONTINUATIONS, Wanted
from coordinator.quota_rows import LONGEST_GENERATION, OPENS_WITHIN, Reserving, Settling
from coordinator.quota_usage import add_usage
from coordinator.stored_rows import NewGeneration, ReportedEnd, StoredGeneration, stored_generation
from coordinator.tables import GenerationRow, ReservationRow
from protocol.errors import BrigadeError, OverLimitError, QuotaExceededError
from protocol.ids import SessionId, WorkerId

QuotaClock = Callable[[], float]


def begin_generations(
    session: Session, generations: Sequence[NewGeneration], quota_clock: QuotaClock | None
) -> list[BrigadeError | None]:
    """As `Repository.record_generations`."""
    refusals: list[BrigadeError | None] = []
    allowed: list[tuple[NewGeneration, ReservationRow | None]] = []
    continues = [new.continues for new in generations if new.continues is not None]
    if continues:  # before the quotas, as reports do: else each would wait for what the other holds
        query = select(GenerationRow.session_id).where(GenerationRow.session_id.in_(continues))
        session.execute(query.order_by(GenerationRow.session_id).with_for_update())
    reserving = Reserving.of(session, [new.key_id for new in generations], continues)
    quota_now = _now(quota_clock)
    for new in generations:
        wanted = Wanted(n_prompt_tokens=new.n_prompt_tokens, max_tokens=new.max_tokens)
        try:
            held_for = OPENS_WITHIN if new.is_opening_told else LONGEST_GENERATION
            row = reserving.reserve(
                new.key_id, new.session_id, wanted, quota_now or new.at, new.continues, held_for=held_for
            )
        except (QuotaExceededError, OverLimitError) as refusal:
            refusals.append(refusal)
            continue
        allowed.append((new, row))
        refusals.append(None)
    session.flush()
    if allowed:
        rows = [new.values(None if row is None else row.id) for new, row in allowed]
        session.execute(insert(GenerationRow), rows)
    for new, _ in allowed:
        if new.continues is not None:
            before = GenerationRow.session_id == new.continues, GenerationRow.key_id == new.key_id
            session.execute(update(GenerationRow).where(*before).values(continued_by=new.session_id))
    return refusals


def finish_generations(
    session: Session, ends: Sequence[ReportedEnd], quota_clock: QuotaClock | None
) -> list[StoredGeneration | None]:
    """As `Repository.finish_generations`."""
    ids = {end.report.session_id for end in ends}
    query = select(GenerationRow).where(GenerationRow.session_id.in_(ids)).order_by(GenerationRow.session_id)
    rows = {row.session_id: row for row in session.scalars(query.with_for_update())}
    settling = Settling.of_generations(session, rows.values())
    quota_now = _now(quota_clock)
    finished = [end.take(rows.get(end.report.session_id)) for end in ends]
    done = [(row, end.report, end.at) for end, row in zip(ends, finished, strict=True) if row is not None]
    counted = _counted_by_successors(session, [row for row, _, _ in done])
    for row, report, at in done:
        settling.report(row, report, quota_now or at, counted.get(row.session_id))
    settling.write()
    add_usage(session, done, counted)
    return [None if row is None else stored_generation(row) for row in finished]


def hold_begun(
    session: Session, heads: Mapping[SessionId, WorkerId], quota_clock: QuotaClock
) -> list[StoredGeneration]:
    """As `Repository.hold_begun`."""
    query = select(GenerationRow).where(GenerationRow.session_id.in_(heads), GenerationRow.finished_at.is_(None))
    found = session.scalars(query.order_by(GenerationRow.session_id).with_for_update())
    running = [row for row in found if row.route[0][0] == heads[SessionId(row.session_id)]]
    settling = Settling.of_generations(session, running)
    now = datetime.fromtimestamp(quota_clock(), UTC)
    return [stored_generation(row) for row in running if not settling.begun(row, now)]


def _counted_by_successors(session: Session, finished: Sequence[GenerationRow]) -> dict[str, int]:
    """Of sessions that report after the one by which their generation went on: tokens counted as its prompt."""
    counted: dict[str, int] = {}
    together = {row.session_id for row in finished}
    for row in finished:
        successor = row
        for _ in range(MAX_CONTINUATIONS):
            if successor.continued_by is None or successor.continued_by in together:
                break
            successor = session.get_one(GenerationRow, successor.continued_by)
            if successor.finished_at is not None and (
                successor.outcome != "failed" or successor.n_completion_tokens
            ):
                counted[row.session_id] = max(0, successor.n_prompt_tokens - row.n_prompt_tokens)
                break
    return counted


def _now(clock: QuotaClock | None) -> datetime | None:
    return None if clock is None else datetime.fromtimestamp(clock(), UTC)
