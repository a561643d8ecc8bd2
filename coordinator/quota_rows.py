"""What is held and used of a key's limits, as rows: `policy.quota` decides, here it is read and written.

Called within the transactions of others. The key's row in `quotas` is locked first; so what happens to one key
happens one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import msgspec
from sqlalchemy import Case, case, func, select, update
from sqlalchemy.orm import Session

from coordinator.policy import quota as policy
from coordinator.policy.quota import Account, Meter, Reservation, Settled, Wanted
from coordinator.tables import GenerationRow, QuotaRow, ReservationRow
from protocol.control_messages import GenerationReport
from protocol.ids import KeyId, SessionId
from protocol.key_limits import KeyLimits

LONGEST_GENERATION = timedelta(hours=1)
"""As long as its tickets are good. What nobody has reported by then is given back, and may still be reported."""
OPENS_WITHIN = timedelta(seconds=60)
"""What nobody has opened by then is given back, if its head is one that says what is opened."""
GOES_ON_WITHIN = timedelta(seconds=10)
"""A generation that failed keeps its reservation for so long: its client is about to go on by another route."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedQuota:
    """A key's row, which nobody else can write until the transaction ends."""

    row: QuotaRow
    limits: KeyLimits

    @property
    def account(self) -> Account:
        """What is used, as it was written last."""
        return account_of(self.row)

    def write(self, account: Account) -> None:
        """Have `account` written with the transaction."""
        requests, minute, day = account.meters
        self.row.requests_used = requests.used
        self.row.minute_used, self.row.minute_entered = minute.used, minute.entered
        self.row.day_used, self.row.day_entered = day.used, day.entered
        self.row.updated_at = datetime.fromtimestamp(account.updated_s, UTC)


def locked_quota(session: Session, key_id: str) -> LockedQuota | None:
    """The key's row; None if it has no limits."""
    row = session.get(QuotaRow, key_id, with_for_update=True, populate_existing=True)
    return None if row is None else LockedQuota(row=row, limits=limits_of(row))


def limits_of(row: QuotaRow) -> KeyLimits:
    """The limits that a row says."""
    return msgspec.convert(row.limits, KeyLimits)


def account_of(row: QuotaRow) -> Account:
    """What is used by a row, as it was written last."""
    meters = (
        Meter(used=row.requests_used),
        Meter(used=row.minute_used, entered=row.minute_entered),
        Meter(used=row.day_used, entered=row.day_entered),
    )
    return Account(meters=meters, updated_s=row.updated_at.timestamp())


class Reserving:
    """Reservations that are made together in one transaction, each by what those before it left."""

    def __init__(self, session: Session, quotas: dict[str, LockedQuota]) -> None:
        self._session = session
        self._quotas = quotas
        self._continued: dict[str, ReservationRow] = {}
        self._n_running: dict[str, int] = {}

    @classmethod
    def of(cls, session: Session, key_ids: Iterable[str], continues: Iterable[str]) -> Reserving:
        """Lock what is to be reserved from; `continues`: the sessions that others go on from."""
        quotas = _locked_quotas(session, set(key_ids))
        counted = {key_id: quota for key_id, quota in quotas.items() if policy.has_limits(quota.limits)}
        self = cls(session, counted)
        sessions = set(continues)
        if counted and sessions:
            found = session.execute(
                select(GenerationRow.session_id, ReservationRow)
                .join(ReservationRow, GenerationRow.reservation_id == ReservationRow.id)
                .where(GenerationRow.session_id.in_(sessions))
            )
            self._continued = {row[0]: row[1] for row in found}
        if any(quota.limits.max_concurrent is not None for quota in counted.values()):
            running = session.execute(
                select(ReservationRow.key_id, func.count())
                .where(ReservationRow.key_id.in_(counted), ReservationRow.is_open.is_(True))
                .group_by(ReservationRow.key_id)
            )
            self._n_running = {row[0]: row[1] for row in running}
        return self

    def reserve(
        self,
        key_id: KeyId,
        session_id: SessionId,
        wanted: Wanted,
        now: datetime,
        continues: SessionId | None,
        *,
        held_for: timedelta = LONGEST_GENERATION,
    ) -> ReservationRow | None:
        """Hold what a generation may use, or what goes beyond what is held for the session that it continues.

        None if the key has no limits. The row has its id once the session is flushed.

        Raises:
            QuotaExceededError, OverLimitError: a limit doesn't allow it; nothing is held.
        """
        quota = self._quotas.get(key_id)
        if quota is None:
            return None
        quota.write(policy.set_back(quota.account, now.timestamp()))
        row = self._continued.get(continues or "")
        if row is not None and (row.key_id != key_id or not policy.can_continue(_reservation(row))):
            row = None
        n_running = self._n_running.get(key_id, 0)
        if row is None:
            account, held = policy.begun(quota.account, quota.limits, wanted, n_running, now.timestamp())
            row = ReservationRow(key_id=key_id, is_open=False)
            self._session.add(row)
        else:
            before = _reservation(row)
            account, held = policy.continued(quota.account, quota.limits, before, wanted, now.timestamp())
        self._n_running[key_id] = n_running + (not row.is_open)
        quota.write(account)
        row.session_id = session_id
        _write(row, held, now + held_for)
        return row


class Settling:
    """Reservations of some keys that reports and time bring to an end, together in one transaction."""

    def __init__(self, session: Session, quotas: dict[str, LockedQuota], rows: dict[int, ReservationRow]) -> None:
        self._session = session
        self._quotas = quotas
        self._rows = rows
        self._moves: list[tuple[ReservationRow, Settled]] = []

    @classmethod
    def of_generations(cls, session: Session, generations: Iterable[GenerationRow]) -> Settling:
        """Lock what these sessions were reserved from."""
        found = list(generations)
        quotas = _locked_quotas(session, {generation.key_id for generation in found})
        ids = {generation.reservation_id for generation in found if generation.key_id in quotas} - {None}
        rows = session.scalars(select(ReservationRow).where(ReservationRow.id.in_(ids))) if ids else ()
        return cls(session, quotas, {row.id: row for row in rows})

    @classmethod
    def of_time(cls, session: Session, key_ids: Iterable[str], now: datetime, n_most: int) -> Settling:
        """Lock what of these keys is due, at most so many: first what is open, as it keeps others waiting."""
        quotas = _locked_quotas(session, set(key_ids))
        query = select(ReservationRow).where(ReservationRow.key_id.in_(quotas), ReservationRow.expires_at <= now)
        in_order = query.order_by(ReservationRow.is_open.desc(), ReservationRow.expires_at, ReservationRow.id)
        rows = session.scalars(in_order.limit(n_most))
        return cls(session, quotas, {row.id: row for row in rows})

    def report(
        self, generation: GenerationRow, report: GenerationReport, now: datetime, n_counted: int | None = None
    ) -> None:
        """Count what a session has used; give back what its generation doesn't need any more.

        One that failed may go on by another route, so that its reservation stays for `GOES_ON_WITHIN`.
        """
        quota = self._quotas.get(generation.key_id)
        if quota is None:
            return
        row = self._rows.get(generation.reservation_id or 0)
        has_failed = report.outcome == "failed"
        n_tokens = policy.n_used(
            Wanted(n_prompt_tokens=generation.n_prompt_tokens, max_tokens=generation.max_tokens),
            report.n_prompt_tokens,
            report.n_completion_tokens,
            has_failed=has_failed,
            n_before=0 if row is None else row.n_used,
            n_counted=n_counted,
        )
        if row is None:
            quota.write(policy.owed(quota.account, quota.limits, n_tokens, now.timestamp()))
            return
        is_latest = row.session_id == generation.session_id
        self._settle(quota, row, n_tokens, now, is_over=is_latest and not has_failed)
        if row.is_open and is_latest:
            row.expires_at = now + GOES_ON_WITHIN

    def begun(self, generation: GenerationRow, now: datetime) -> bool:
        """Hold what a session may use that was opened, for as long as it may take; False: it was given back."""
        row = self._rows.get(generation.reservation_id or 0)
        if row is None or row.session_id != generation.session_id:
            return True
        if row.is_open:
            row.expires_at = now + LONGEST_GENERATION
        return row.is_open

    def expire(self, now: datetime) -> int:
        """Give back what is held for generations that nobody reported, and forget those long over; how many."""
        for row in self._rows.values():
            if row.is_open:
                self._settle(self._quotas[row.key_id], row, 0, now, is_over=True)
            else:
                self._session.delete(row)
        return len(self._rows)

    def write(self) -> None:
        """Write what was settled. What is given back leaves the queue, so that what is held behind it moves up."""
        self._session.flush()
        for key_id in sorted({row.key_id for row, _ in self._moves}):
            minute, day = self._given_back_before(key_id)
            self._session.execute(
                update(ReservationRow)
                .where(
                    ReservationRow.key_id == key_id,
                    ReservationRow.is_open.is_(True),
                    ReservationRow.id.not_in(self._rows),
                )
                .values(minute_mark=ReservationRow.minute_mark - minute, day_mark=ReservationRow.day_mark - day)
                .execution_options(synchronize_session=False)
            )

    def _given_back_before(self, key_id: str) -> tuple[Case[float], Case[float]]:
        """For both rates: what all reservations before a row of this key have given back."""
        moves = sorted(
            ((row.id, result.given_back) for row, result in self._moves if row.key_id == key_id), reverse=True
        )
        minute = [
            (ReservationRow.id > moves[i][0], sum(move[1][0] for move in moves[i:])) for i in range(len(moves))
        ]
        day = [(ReservationRow.id > moves[i][0], sum(move[1][1] for move in moves[i:])) for i in range(len(moves))]
        return case(*minute, else_=0.0), case(*day, else_=0.0)

    def _settle(
        self, quota: LockedQuota, row: ReservationRow, n_tokens: int, now: datetime, *, is_over: bool
    ) -> None:
        was_open = row.is_open
        result = policy.settled(
            quota.account, quota.limits, _reservation(row), n_tokens, now.timestamp(), is_over=is_over
        )
        quota.write(result.account)
        _write(row, result.reservation, row.expires_at)
        if was_open and not row.is_open:
            row.expires_at = now + LONGEST_GENERATION
        if any(result.given_back):
            self._move_up(row, result)

    def _move_up(self, row: ReservationRow, result: Settled) -> None:
        self._moves.append((row, result))
        for other in self._rows.values():
            if other.key_id == row.key_id and other.is_open and other.id > row.id:
                other.minute_mark -= result.given_back[0]
                other.day_mark -= result.given_back[1]


def _locked_quotas(session: Session, key_ids: set[str]) -> dict[str, LockedQuota]:
    """In order, so that two who lock several never wait for each other."""
    query = select(QuotaRow).where(QuotaRow.key_id.in_(key_ids)).order_by(QuotaRow.key_id).with_for_update()
    return {row.key_id: LockedQuota(row=row, limits=limits_of(row)) for row in session.scalars(query)}


def _reservation(row: ReservationRow) -> Reservation:
    return Reservation(
        n_reserved=row.n_reserved,
        marks=(row.minute_mark, row.day_mark),
        n_used=row.n_used,
        n_sessions=row.n_sessions,
        is_open=row.is_open,
    )


def _write(row: ReservationRow, held: Reservation, expires_at: datetime) -> None:
    row.n_reserved, row.n_used, row.n_sessions = held.n_reserved, held.n_used, held.n_sessions
    row.minute_mark, row.day_mark = held.marks
    row.is_open, row.expires_at = held.is_open, expires_at
