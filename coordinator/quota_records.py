"""Rows of quotas and reservations as values: read under the key's lock, written many by one statement.

The statements are made once: to put one together and compile it takes several times what a database needs for it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import BindParameter, Connection, Integer, Row, bindparam, delete, func, insert, select, update

from coordinator.policy.quota import Account, Meter, Reservation
from coordinator.table_base import table_of
from coordinator.tables import GenerationRow, QuotaRow, ReservationRow
from protocol.key_limits import KeyLimits

QUOTAS, RESERVATIONS, GENERATIONS = table_of(QuotaRow), table_of(ReservationRow), table_of(GenerationRow)
BEGUN_NAMES = (
    *("session_id", "key_id", "model", "revision", "route", "n_prompt_tokens", "max_tokens", "started_at"),
    "continues",
)
"""What is written of a generation that begins, beside its reservation."""
HELD_NAMES = tuple(column.name for column in RESERVATIONS.c if column.name != "id")
"""What is written of a reservation: its id is the database's."""
_NAMES: BindParameter[Any] = bindparam("names", expanding=True)
# Keys in order, so that two who lock several never wait for each other.
_LOCKED = select(QUOTAS).where(QUOTAS.c.key_id.in_(_NAMES)).order_by(QUOTAS.c.key_id).with_for_update()
_SAVE_QUOTA = (
    update(QUOTAS)
    .where(QUOTAS.c.key_id == bindparam("of_key"))
    .values({column.name: bindparam(column.name) for column in QUOTAS.c if column.name not in ("key_id", "limits")})
)
_BY_ID = select(RESERVATIONS).where(RESERVATIONS.c.id.in_(_NAMES))
_CONTINUED = (
    select(GENERATIONS.c.session_id.label("continued"), RESERVATIONS)
    .join(RESERVATIONS, GENERATIONS.c.reservation_id == RESERVATIONS.c.id)
    .where(GENERATIONS.c.session_id.in_(_NAMES))
)
_RUNNING = (
    select(RESERVATIONS.c.key_id, func.count())
    .where(RESERVATIONS.c.key_id.in_(_NAMES), RESERVATIONS.c.is_open.is_(True))
    .group_by(RESERVATIONS.c.key_id)
)
_DUE = (
    select(RESERVATIONS)
    .where(RESERVATIONS.c.key_id.in_(_NAMES), RESERVATIONS.c.expires_at <= bindparam("now"))
    .order_by(RESERVATIONS.c.is_open.desc(), RESERVATIONS.c.expires_at, RESERVATIONS.c.id)
    .limit(bindparam("n_most", type_=Integer))
)
# Ids in the order of the reservations: that is their order in the queue.
_HOLD = insert(RESERVATIONS).returning(RESERVATIONS.c.id, sort_by_parameter_order=True)
_SAVE_RESERVATION = (
    update(RESERVATIONS)
    .where(RESERVATIONS.c.id == bindparam("of_id"))
    .values(
        {column.name: bindparam(column.name) for column in RESERVATIONS.c if column.name not in ("id", "key_id")}
    )
)
_FORGET = delete(RESERVATIONS).where(RESERVATIONS.c.id.in_(_NAMES))


@dataclass(slots=True, kw_only=True)
class LockedQuota:
    """A key's limits and what is used of them; nobody else writes its row until the transaction ends."""

    key_id: str
    limits: KeyLimits
    stored: Account
    """As it was read."""
    account: Account
    """As it is to be written."""

    @property
    def is_changed(self) -> bool:
        """Whether there is anything to write."""
        return self.account != self.stored


@dataclass(slots=True, kw_only=True)
class HeldReservation:
    """What is held for one generation, by whose key's lock it may be written."""

    id: int | None = None
    """None until it is written for the first time."""
    key_id: str
    session_id: str
    held: Reservation
    expires_at: datetime


def limits_of(row: QuotaRow | Row[Any]) -> KeyLimits:
    """The limits that a row says."""
    return msgspec.convert(row.limits, KeyLimits)


def account_of(row: QuotaRow | Row[Any]) -> Account:
    """What is used by a row, as it was written last."""
    meters = (
        Meter(used=row.requests_used),
        Meter(used=row.minute_used, entered=row.minute_entered),
        Meter(used=row.day_used, entered=row.day_entered),
    )
    return Account(meters=meters, updated_s=row.updated_at.timestamp())


def locked_quotas(connection: Connection, key_ids: Collection[str]) -> dict[str, LockedQuota]:
    """Of these keys those that have limits."""
    if not key_ids:
        return {}
    return {row.key_id: locked_quota(row) for row in connection.execute(_LOCKED, {"names": list(key_ids)})}


def save_quotas(connection: Connection, quotas: Iterable[LockedQuota]) -> None:
    """Write what is used, as far as that has changed."""
    if values := [quota_values(quota) for quota in quotas if quota.is_changed]:
        connection.execute(_SAVE_QUOTA, values)


def n_running(connection: Connection, key_ids: Collection[str]) -> dict[str, int]:
    """Open reservations by key, as far as there are any."""
    return {row[0]: row[1] for row in connection.execute(_RUNNING, {"names": list(key_ids)})}


def reservations_by_id(connection: Connection, ids: Collection[int]) -> dict[int, HeldReservation]:
    """Those of them that are there."""
    if not ids:
        return {}
    return {row.id: held_reservation(row) for row in connection.execute(_BY_ID, {"names": list(ids)})}


def reservations_continued(connection: Connection, sessions: Collection[str]) -> dict[str, HeldReservation]:
    """What is held for the generations of these sessions, by session; one and the same for those of one."""
    found: dict[int, HeldReservation] = {}
    rows = connection.execute(_CONTINUED, {"names": list(sessions)})
    return {row.continued: found.setdefault(row.id, held_reservation(row)) for row in rows}


def reservations_due(
    connection: Connection, key_ids: Collection[str], now: datetime, n_most: int
) -> dict[int, HeldReservation]:
    """Of these keys at most so many whose time has come: first what is open, then by that time."""
    rows = connection.execute(_DUE, {"names": list(key_ids), "now": now, "n_most": n_most})
    return {row.id: held_reservation(row) for row in rows}


def save_reservations(connection: Connection, reservations: Iterable[HeldReservation]) -> None:
    """Write them; what is new has its id then."""
    all_of_them = list(reservations)
    if known := [reservation_values(one) | {"of_id": one.id} for one in all_of_them if one.id is not None]:
        connection.execute(_SAVE_RESERVATION, known)
    if new := [one for one in all_of_them if one.id is None]:
        values = [reservation_values(one) | {"key_id": one.key_id} for one in new]
        for one, row_id in zip(new, connection.scalars(_HOLD, values), strict=True):
            one.id = row_id


def forget_reservations(connection: Connection, ids: Collection[int]) -> None:
    """Delete them."""
    if ids:
        connection.execute(_FORGET, {"names": list(ids)})


def held_reservation(row: Row[Any]) -> HeldReservation:
    """A whole row of `reservations`."""
    held = Reservation(
        n_reserved=row.n_reserved,
        marks=(row.minute_mark, row.day_mark),
        n_used=row.n_used,
        n_sessions=row.n_sessions,
        is_open=row.is_open,
    )
    return HeldReservation(
        id=row.id, key_id=row.key_id, session_id=row.session_id, held=held, expires_at=row.expires_at
    )


def locked_quota(row: Row[Any]) -> LockedQuota:
    """A whole row of `quotas`."""
    stored = account_of(row)
    return LockedQuota(key_id=row.key_id, limits=limits_of(row), stored=stored, account=stored)


def quota_values(quota: LockedQuota) -> dict[str, Any]:
    """What is written of a key, by the names of its columns."""
    requests, minute, day = quota.account.meters
    return {
        "of_key": quota.key_id,
        "requests_used": requests.used,
        "minute_used": minute.used,
        "minute_entered": minute.entered,
        "day_used": day.used,
        "day_entered": day.entered,
        "updated_at": datetime.fromtimestamp(quota.account.updated_s, UTC),
    }


def reservation_values(one: HeldReservation) -> dict[str, Any]:
    """What is written of a reservation, by the names of its columns."""
    held = one.held
    return {
        "session_id": one.session_id,
        "n_reserved": held.n_reserved,
        "n_used": held.n_used,
        "n_sessions": held.n_sessions,
        "minute_mark": held.marks[0],
        "day_mark": held.marks[1],
        "is_open": held.is_open,
        "expires_at": one.expires_at,
    }
