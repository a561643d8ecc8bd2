"""What the last transactions left of keys' quotas, so that the next one needn't read them before it writes.

What is remembered may be out of date: who writes by it has the database see, in the same statement, that the rows
are still so. More may seem to run than does, as only a look into the database says what has ended.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from coordinator.quota_records import LockedQuota
from protocol.ids import KeyId

MAX_REMEMBERED = 1024


@dataclass(slots=True, kw_only=True)
class KnownQuota:
    """A key's row as it was left."""

    limits_text: str
    """Its limits as they are stored, to be compared with."""
    quota: LockedQuota
    n_running: int

    def left(self, n_running: int) -> KnownQuota:
        """As it is once what was changed is written: the database keeps whole microseconds."""
        updated_at = datetime.fromtimestamp(self.quota.account.updated_s, UTC)
        account = replace(self.quota.account, updated_s=updated_at.timestamp())
        quota = replace(self.quota, stored=account, account=account)
        return KnownQuota(limits_text=self.limits_text, quota=quota, n_running=n_running)


Known = Mapping[KeyId, KnownQuota | None]
"""By key; None: it has no row, as nothing of it is counted."""


class RememberedQuotas:
    """Whoever takes some writes by them, and gives back what is left then; meanwhile nobody else finds them."""

    def __init__(self) -> None:
        self._known: OrderedDict[KeyId, KnownQuota | None] = OrderedDict()

    def taken(self, key_ids: Collection[KeyId]) -> Known:
        """What is known of these keys, as far as something is."""
        return {key_id: self._known.pop(key_id) for key_id in key_ids if key_id in self._known}

    def give_back(self, known: Known) -> None:
        """Remember these, which is how a transaction that was committed left them."""
        self._known.update(known)
        while len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)

    def note_settled(self, quotas: Collection[LockedQuota]) -> None:
        """Other transactions left these so."""
        for quota in quotas:
            known = self._known.get(KeyId(quota.key_id))
            if known is not None:
                known.quota.account = quota.account
                self._known[KeyId(quota.key_id)] = known.left(known.n_running)
