"""API keys renamed, given to others and rotated: one method is one transaction, and a line of the audit log."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from coordinator.persistence import insert_audit
from coordinator.stored_rows import StoredKey, stored_key
from coordinator.tables import ApiKeyRow, QuotaRow
from coordinator.transactions import Transactions
from protocol.error_forms import repeated
from protocol.errors import ConflictError, NotFoundError
from protocol.ids import KeyId


class KeyChanges:
    """Changes of keys. All of them raise `StorageError` if the database can't be used."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    async def rename(self, key_id: KeyId, name: str, now: datetime) -> StoredKey:
        """Give a key another name; the same again changes nothing.

        Raises:
            NotFoundError: there is no such key.
        """
        async with self._transactions.writing() as session:
            row, before = await _found(session, key_id)
            if row.name == name:
                return before
            row.name = name
            return await _changed(session, row, before, now, "key_renamed")

    async def set_owner(self, key_id: KeyId, owner: str, now: datetime) -> StoredKey:
        """Have a key be this owner's, empty: nobody's in particular; the same again changes nothing.

        Raises:
            NotFoundError: there is no such key.
        """
        async with self._transactions.writing() as session:
            row, before = await _found(session, key_id)
            if row.owner == owner:
                return before
            row.owner = owner
            return await _changed(session, row, before, now, "key_owner_set")

    async def rotate(self, key_id: KeyId, secret_hash: str, old_until: datetime, now: datetime) -> StoredKey:
        """Have a key proven by another secret from now on, and by the one that it had until `old_until`.

        One that was rotated a moment ago has two secrets; the older of them is good for nothing any more.

        Raises:
            NotFoundError: there is no such key.
            ConflictError: it is revoked.
        """
        async with self._transactions.writing() as session:
            row, before = await _found(session, key_id)
            if row.revoked_at is not None:
                raise ConflictError(f"the key {key_id} is revoked: make a new one (`coord key create`)")
            row.old_secret_hash, row.old_until = row.secret_hash, old_until
            row.secret_hash = secret_hash
            return await _changed(session, row, before, now, "key_rotated")


async def _found(session: AsyncSession, key_id: KeyId) -> tuple[ApiKeyRow, StoredKey]:
    row = await session.get(ApiKeyRow, key_id)
    if row is None:
        raise NotFoundError(f"there is no key {repeated(key_id)}; `coord key list` shows them")
    return row, stored_key(row, await session.get(QuotaRow, key_id))


async def _changed(
    session: AsyncSession, row: ApiKeyRow, before: StoredKey, now: datetime, action: str
) -> StoredKey:
    after = stored_key(row, await session.get(QuotaRow, row.key_id))
    details = f"{row.kind}: {row.name}"
    insert_audit(session, now, action, row.key_id, details, before=before.view(), after=after.view())
    return after
