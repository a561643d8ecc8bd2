"""Invites in the database: made, listed and revoked by operators, used by workers. One method is one transaction.

Whoever comes here with an invite has proven that it is genuine: so they are told what is the matter with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import and_, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from coordinator.invite_tables import InviteRow, InviteUseRow
from coordinator.persistence import insert_audit
from coordinator.transactions import PATIENCE_S, Transactions
from protocol.error_forms import repeated
from protocol.errors import ForbiddenError, NotFoundError
from protocol.ids import InviteId, KeyId, WorkerId
from protocol.invite_rest import InviteState
from protocol.invites import is_invite_id

_ASK_FOR_ANOTHER = "ask the cluster's operator for another (`coord invite`)"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredInvite:
    """An invite as it is kept."""

    invite_id: InviteId
    name: str
    created_at: datetime
    created_by: KeyId
    expires_at: datetime
    n_uses: int
    revoked_at: datetime | None = None
    workers: tuple[WorkerId, ...] = ()
    """Those that joined by it, in the order in which they came."""

    def state(self, now: datetime) -> InviteState:
        """How it stands."""
        if self.revoked_at is not None:
            return "revoked"
        if len(self.workers) >= self.n_uses:
            return "used_up"
        return "expired" if now >= self.expires_at else "open"

    def refusal(self, worker_id: WorkerId, now: datetime) -> str:
        """Why this worker can't join by it; empty: it can. Who did before comes in again, also when it is over."""
        if self.revoked_at is not None:
            return f"was revoked on {_shown(self.revoked_at)}"
        if worker_id in self.workers:
            return ""
        if now >= self.expires_at:
            return f"was good until {_shown(self.expires_at)}"
        if len(self.workers) >= self.n_uses:
            return f"is used up: it was for {self.n_uses} worker{'s' * (self.n_uses > 1)}"
        return ""

    def view(self) -> dict[str, Any]:
        """What operators decided about it, for the audit log."""
        return {
            "name": self.name,
            "expires_at": self.expires_at.isoformat(),
            "n_uses": self.n_uses,
            "n_used": len(self.workers),
            "revoked_at": None if self.revoked_at is None else self.revoked_at.isoformat(),
        }


class InviteStore:
    """All of its methods raise `StorageError` if the database can't be used."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    async def add(self, invite: StoredInvite) -> None:
        """Keep a new one."""
        async with self._transactions.writing() as session:
            session.add(
                InviteRow(
                    invite_id=invite.invite_id,
                    name=invite.name,
                    created_at=invite.created_at,
                    created_by=invite.created_by,
                    expires_at=invite.expires_at,
                    n_uses=invite.n_uses,
                    revoked_at=None,
                )
            )
            insert_audit(
                session, invite.created_at, "invite_created", invite.invite_id, invite.name, after=invite.view()
            )

    async def invite(self, invite_id: InviteId) -> StoredInvite:
        """One invite; NotFoundError if there is none."""
        async with self._transactions.reading() as session:
            return (await _found(session, invite_id))[1]

    async def invites(
        self, now: datetime, state: InviteState | None, *, after: tuple[datetime, InviteId] | None, n_invites: int
    ) -> list[StoredInvite]:
        """Invites, newest first: at most so many, of those after one of them, of those in a state."""
        found: list[StoredInvite] = []
        async with self._transactions.reading() as session:
            while len(found) < n_invites:
                part = await _some(session, after, n_invites)
                found += [each for each in part if state is None or each.state(now) == state]
                if len(part) < n_invites:
                    break
                after = (part[-1].created_at, part[-1].invite_id)
        return found[:n_invites]

    async def n_open(self, now: datetime) -> int:
        """By how many invites somebody may join now. For the status, which is to say soon if nobody answers."""
        used = select(func.count()).where(InviteUseRow.invite_id == InviteRow.invite_id).scalar_subquery()
        query = select(func.count()).select_from(InviteRow)
        query = query.where(InviteRow.revoked_at.is_(None), InviteRow.expires_at > now, used < InviteRow.n_uses)
        async with self._transactions.reading(PATIENCE_S) as session:
            return await session.scalar(query) or 0

    async def revoke(self, invite_id: InviteId, now: datetime) -> StoredInvite:
        """Have nobody join by it any more, nor come again; revoking again changes nothing.

        Raises:
            NotFoundError: there is none.
        """
        async with self._transactions.writing() as session:
            row, before = await _found(session, invite_id, is_locked=True)
            if before.revoked_at is not None:
                return before
            row.revoked_at = now
            after = _stored(row, before.workers)
            insert_audit(
                session, now, "invite_revoked", invite_id, row.name, before=before.view(), after=after.view()
            )
            return after

    async def use_at(self, invite_id: InviteId, worker_id: WorkerId, now_s: float) -> None:
        """As `use`, at a time in seconds since 1970, UTC."""
        await self.use(invite_id, worker_id, datetime.fromtimestamp(now_s, UTC))

    async def use(self, invite_id: InviteId, worker_id: WorkerId, now: datetime) -> None:
        """Let a worker in by an invite that it has proven to hold; one that came by it before counts once.

        Raises:
            ForbiddenError: it can't, and why.
        """
        async with self._transactions.writing() as session:
            try:
                row, before = await _found(session, invite_id, is_locked=True)
            except NotFoundError as exc:  # genuine, and not here: the database is older than the invite
                raise ForbiddenError(f"the invite {invite_id} isn't known here; {_ASK_FOR_ANOTHER}") from exc
            if why := before.refusal(worker_id, now):
                raise ForbiddenError(f"the invite {invite_id} {why}; {_ASK_FOR_ANOTHER}")
            if worker_id in before.workers:
                return
            session.add(InviteUseRow(invite_id=invite_id, worker_id=worker_id, used_at=now))
            after = _stored(row, (*before.workers, worker_id))
            details = f"by {worker_id}, {len(after.workers)} of {row.n_uses}"
            insert_audit(session, now, "invite_used", invite_id, details, before=before.view(), after=after.view())


async def _found(
    session: AsyncSession, invite_id: InviteId, *, is_locked: bool = False
) -> tuple[InviteRow, StoredInvite]:
    """The row, which others that want to use or revoke it wait for if it is to be locked."""
    row = None
    if is_invite_id(invite_id):  # a text column of PostgreSQL takes not every text
        row = await session.get(InviteRow, invite_id, with_for_update=True if is_locked else None)
    if row is None:
        raise NotFoundError(f"there is no invite {repeated(invite_id)}; `coord invite list` shows them")
    return row, _stored(row, (await _uses(session, [invite_id])).get(invite_id, ()))


async def _some(
    session: AsyncSession, after: tuple[datetime, InviteId] | None, n_invites: int
) -> list[StoredInvite]:
    query = select(InviteRow).order_by(InviteRow.created_at.desc(), InviteRow.invite_id).limit(n_invites)
    if after is not None:
        at, invite_id = after
        same_time = and_(InviteRow.created_at == at, InviteRow.invite_id > invite_id)
        query = query.where(or_(InviteRow.created_at < at, same_time))
    rows = list(await session.scalars(query))
    uses = await _uses(session, [row.invite_id for row in rows])
    return [_stored(row, uses.get(row.invite_id, ())) for row in rows]


async def _uses(session: AsyncSession, invite_ids: Sequence[str]) -> dict[str, tuple[WorkerId, ...]]:
    """Who joined by which of them, in the order in which they came."""
    query = select(InviteUseRow).where(InviteUseRow.invite_id.in_(invite_ids))
    uses: dict[str, tuple[WorkerId, ...]] = {}
    for row in await session.scalars(query.order_by(InviteUseRow.used_at, InviteUseRow.worker_id)):
        uses[row.invite_id] = (*uses.get(row.invite_id, ()), WorkerId(row.worker_id))
    return uses


def _stored(row: InviteRow, workers: tuple[WorkerId, ...]) -> StoredInvite:
    return StoredInvite(
        invite_id=InviteId(row.invite_id),
        name=row.name,
        created_at=row.created_at,
        created_by=KeyId(row.created_by),
        expires_at=row.expires_at,
        n_uses=row.n_uses,
        revoked_at=row.revoked_at,
        workers=workers,
    )


def _shown(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"
