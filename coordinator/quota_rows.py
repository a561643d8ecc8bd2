"""What is held and used of a key's limits, as rows: `policy.quota` decides, here it is read and written.

Called within the transactions of others. The key's row in `quotas` is locked first; so what happens to one key
happens one after the other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import BigInteger, Connection, Double, Update, bindparam, case, update

from coordinator.policy import quota as policy
from coordinator.policy.quota import Wanted
from coordinator.policy.quota_views import rates_left
from coordinator.postgres_rows import Move, save_settled, settled_arrays
from coordinator.quota_records import (
    RESERVATIONS,
    HeldReservation,
    LockedQuota,
    forget_reservations,
    locked_quotas,
    n_running,
    reservations_by_id,
    reservations_continued,
    reservations_due,
    save_quotas,
    save_reservations,
)
from coordinator.stored_rows import StoredGeneration
from protocol.control_messages import GenerationReport
from protocol.ids import KeyId, SessionId
from protocol.key_limits import RateLeft

LONGEST_GENERATION = timedelta(hours=1)
"""As long as its tickets are good. What nobody has reported by then is given back, and may still be reported."""
OPENS_WITHIN = timedelta(seconds=60)
"""What nobody has opened by then is given back, if its head is one that says what is opened."""
GOES_ON_WITHIN = timedelta(seconds=10)
"""A generation that failed keeps its reservation for so long: its client is about to go on by another route."""
REPORTED_WITHIN = timedelta(seconds=30)
"""What is over at its head is reported by its tail within so long, unless that never heard of it."""
_BEHIND_ALL = 2**62


class Reserving:
    """Reservations that are made together in one transaction, each by what those before it left."""

    def __init__(
        self,
        quotas: Mapping[str, LockedQuota],
        continued: Mapping[str, HeldReservation],
        running: Mapping[str, int],
    ) -> None:
        self._quotas = {key_id: quota for key_id, quota in quotas.items() if policy.has_limits(quota.limits)}
        self._continued = continued
        self._n_running = dict(running)
        self._held: dict[SessionId, HeldReservation] = {}

    @classmethod
    def of(cls, connection: Connection, key_ids: Iterable[str], continues: Collection[str]) -> Reserving:
        """Lock what is to be reserved from; `continues`: the sessions that others go on from."""
        locked = locked_quotas(connection, set(key_ids))
        quotas = {key_id: quota for key_id, quota in locked.items() if policy.has_limits(quota.limits)}
        continued = reservations_continued(connection, continues) if quotas and continues else {}
        has_places = any(quota.limits.max_concurrent is not None for quota in quotas.values())
        return cls(quotas, continued, n_running(connection, quotas) if has_places else {})

    def reserve(
        self,
        key_id: KeyId,
        session_id: SessionId,
        wanted: Wanted,
        now: datetime,
        continues: SessionId | None,
        *,
        held_for: timedelta = LONGEST_GENERATION,
    ) -> None:
        """Hold what a generation may use, or what goes beyond what is held for the session that it continues.

        Nothing if the key has no limits.

        Raises:
            QuotaExceededError, OverLimitError: a limit doesn't allow it; nothing is held.
        """
        quota = self._quotas.get(key_id)
        if quota is None:
            return
        now_s = now.timestamp()
        quota.account = policy.set_back(quota.account, now_s)
        row = self._continued.get(continues or "")
        if row is not None and (row.key_id != key_id or not policy.can_continue(row.held)):
            row = None
        running = self._n_running.get(key_id, 0)
        if row is None:
            account, held = policy.begun(quota.account, quota.limits, wanted, running, now_s)
            row = HeldReservation(key_id=key_id, session_id=session_id, held=held, expires_at=now + held_for)
            self._n_running[key_id] = running + 1
        else:
            account, held = policy.continued(quota.account, quota.limits, row.held, wanted, now_s)
            row.session_id, row.held, row.expires_at = session_id, held, now + held_for
        quota.account = account
        self._held[session_id] = row

    def n_running(self, key_id: str) -> int:
        """Generations of the key that run, those that were reserved for here among them."""
        return self._n_running.get(key_id, 0)

    def rates_left(self, key_id: KeyId, now: datetime) -> tuple[RateLeft, ...]:
        """What is left of the key's rates."""
        quota = self._quotas.get(key_id)
        if quota is None:
            return ()
        return rates_left(policy.at(quota.account, quota.limits, now.timestamp()), quota.limits)

    @property
    def changed_quotas(self) -> list[LockedQuota]:
        """What is to be written of the keys."""
        return [quota for quota in self._quotas.values() if quota.is_changed]

    @property
    def held(self) -> list[HeldReservation]:
        """What is to be written of reservations: each once, in the order in which they were made."""
        return list({id(row): row for row in self._held.values()}.values())

    def write(self, connection: Connection) -> dict[SessionId, int]:
        """Write what was reserved; the reservations by session."""
        save_quotas(connection, self.changed_quotas)
        save_reservations(connection, self.held)
        return {session_id: row.id for session_id, row in self._held.items() if row.id is not None}


class Settling:
    """Reservations of some keys that reports and time bring to an end, together in one transaction."""

    def __init__(self, quotas: Mapping[str, LockedQuota], rows: Mapping[int, HeldReservation]) -> None:
        self._quotas = quotas
        self._rows = rows
        self._moves: defaultdict[str, dict[int, tuple[float, float]]] = defaultdict(dict)
        self._changed: dict[int, HeldReservation] = {}
        self._forgotten: list[int] = []

    @classmethod
    def of_generations(cls, connection: Connection, generations: Collection[StoredGeneration]) -> Settling:
        """Lock what these sessions were reserved from."""
        quotas = locked_quotas(connection, {generation.key_id for generation in generations})
        ids = {generation.reservation_id for generation in generations if generation.key_id in quotas} - {None}
        return cls(quotas, reservations_by_id(connection, [row_id for row_id in ids if row_id is not None]))

    @classmethod
    def of_time(cls, connection: Connection, key_ids: Collection[str], now: datetime, n_most: int) -> Settling:
        """Lock what of these keys is due, at most so many: first what is open, as it keeps others waiting."""
        quotas = locked_quotas(connection, key_ids)
        return cls(quotas, reservations_due(connection, quotas, now, n_most))

    def report(
        self, generation: StoredGeneration, report: GenerationReport, now: datetime, n_counted: int | None = None
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
            n_before=0 if row is None else row.held.n_used,
            n_counted=n_counted,
        )
        if row is None:
            quota.account = policy.owed(quota.account, quota.limits, n_tokens, now.timestamp())
            return
        is_latest = row.session_id == generation.session_id
        self._settle(quota, row, n_tokens, now, is_over=is_latest and not has_failed)
        if row.held.is_open and is_latest:
            row.expires_at = now + GOES_ON_WITHIN

    def begun(self, generation: StoredGeneration, now: datetime) -> bool:
        """Hold what a session may use that was opened, for as long as it may take; False: it was given back."""
        row_id = generation.reservation_id or 0
        row = self._rows.get(row_id)
        if row is None or row.session_id != generation.session_id:
            return True
        if row.held.is_open:
            row.expires_at = now + LONGEST_GENERATION
            self._changed[row_id] = row
        return row.held.is_open

    def over_at_head(self, generation: StoredGeneration, now: datetime) -> None:
        """Hold what a session may use no longer than its tail may take to report it."""
        row_id = generation.reservation_id or 0
        row = self._rows.get(row_id)
        if row is not None and row.session_id == generation.session_id and row.held.is_open:
            row.expires_at = min(row.expires_at, now + REPORTED_WITHIN)
            self._changed[row_id] = row

    def expire(self, now: datetime) -> int:
        """Give back what is held for generations that nobody reported, and forget those long over; how many."""
        for row_id, row in self._rows.items():
            if row.held.is_open:
                self._settle(self._quotas[row.key_id], row, 0, now, is_over=True)
            else:
                self._forgotten.append(row_id)
        return len(self._rows)

    @property
    def quotas(self) -> list[LockedQuota]:
        """The keys, as they are left."""
        return list(self._quotas.values())

    def write(self, connection: Connection) -> None:
        """Write what was settled. What is given back leaves the queue, so that what is held behind it moves up."""
        forget_reservations(connection, self._forgotten)
        if connection.dialect.name == "postgresql":
            save_settled(connection, self.arrays())
            return
        save_quotas(connection, self._quotas.values())
        save_reservations(connection, self._changed.values())
        for key_id in sorted(self._moves):
            self._move_up_others(connection, key_id)

    @property
    def changed(self) -> list[HeldReservation]:
        """What is to be written of reservations."""
        return list(self._changed.values())

    @property
    def moves(self) -> list[Move]:
        """By how much what is open behind each reservation moves up: in order, by key and reservation."""
        return sorted((key_id, i, *by) for key_id, moved in self._moves.items() for i, by in moved.items())

    def arrays(self) -> list[list[Any]]:
        """The same as PostgreSQL is sent it, but for what is forgotten: parameters of `postgres_rows.settling`."""
        return settled_arrays(self._quotas.values(), self.changed, self.moves, self._rows)

    def _settle(
        self, quota: LockedQuota, row: HeldReservation, n_tokens: int, now: datetime, *, is_over: bool
    ) -> None:
        was_open, row_id = row.held.is_open, row.id
        assert row_id is not None, "it was read"
        result = policy.settled(quota.account, quota.limits, row.held, n_tokens, now.timestamp(), is_over=is_over)
        quota.account, row.held = result.account, result.reservation
        self._changed[row_id] = row
        if was_open and not row.held.is_open:
            row.expires_at = now + LONGEST_GENERATION
        if any(result.given_back):
            minute, day = result.given_back
            self._moves[row.key_id][row_id] = minute, day
            self._move_up(row.key_id, row_id, result.given_back)

    def _move_up(self, key_id: str, row_id: int, given_back: tuple[float, ...]) -> None:
        """Those behind it that were read here; the others are moved by `write`."""
        for other_id, other in self._rows.items():
            if other.key_id == key_id and other.held.is_open and other_id > row_id:
                other.held = policy.moved_up(other.held, given_back)
                self._changed[other_id] = other

    def _move_up_others(self, connection: Connection, key_id: str) -> None:
        moves = sorted(self._moves[key_id].items())
        n_cases = 2 ** (len(moves) - 1).bit_length()
        values: dict[str, object] = {"of_key": key_id, "names": list(self._rows)}
        minute = day = 0.0
        for i in range(n_cases):  # what isn't needed is behind all there is
            row_id, given_back = moves[i] if i < len(moves) else (_BEHIND_ALL, (0.0, 0.0))
            minute, day = minute + given_back[0], day + given_back[1]
            values |= {f"id_{i}": row_id, f"minute_{i}": minute, f"day_{i}": day}
        connection.execute(_moving_up(n_cases), values)


@cache
def _moving_up(n_cases: int) -> Update:
    """Each row of a key moves by what all before it have given back; made for few numbers of these, then kept."""
    behind = [RESERVATIONS.c.id > bindparam(f"id_{i}", type_=BigInteger) for i in reversed(range(n_cases))]
    minute = [bindparam(f"minute_{i}", type_=Double) for i in reversed(range(n_cases))]
    day = [bindparam(f"day_{i}", type_=Double) for i in reversed(range(n_cases))]
    by_minute = case(*zip(behind, minute, strict=True), else_=0.0)
    by_day = case(*zip(behind, day, strict=True), else_=0.0)
    of_key = RESERVATIONS.c.key_id == bindparam("of_key")
    others = RESERVATIONS.c.id.not_in(bindparam("names", expanding=True))
    marks = RESERVATIONS.c.minute_mark, RESERVATIONS.c.day_mark
    return (
        update(RESERVATIONS)
        .where(of_key, RESERVATIONS.c.is_open.is_(True), others)
        .values(minute_mark=marks[0] - by_minute, day_mark=marks[1] - by_day)
    )
