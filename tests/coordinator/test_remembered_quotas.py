"""What is remembered of keys is found once, and isn't more than there is room for."""

from __future__ import annotations

import pytest

from coordinator import remembered_quotas
from coordinator.policy.quota import Account
from coordinator.quota_records import LockedQuota
from coordinator.remembered_quotas import KnownQuota, RememberedQuotas
from protocol.ids import KeyId
from protocol.key_limits import KeyLimits

KEY, FREE = KeyId("k"), KeyId("free")


def known(updated_s: float) -> KnownQuota:
    account = Account(updated_s=updated_s)
    quota = LockedQuota(key_id=KEY, limits=KeyLimits(max_concurrent=1), stored=account, account=account)
    return KnownQuota(limits_text="{}", quota=quota, n_running=3)


def test_what_is_taken_is_found_by_nobody_else_until_it_is_given_back() -> None:
    remembered = RememberedQuotas()
    assert remembered.taken([KEY]) == {}
    both = {KEY: known(1.0), FREE: None}
    remembered.give_back(both)
    assert remembered.taken([KEY, KeyId("unknown")]) == {KEY: known(1.0)}
    assert remembered.taken([KEY]) == {}
    assert remembered.taken([FREE]) == {FREE: None}


def test_what_another_transaction_left_counts_unless_somebody_writes_by_what_was_before() -> None:
    remembered, later = RememberedQuotas(), known(2.0).quota
    remembered.note_settled([later])
    assert remembered.taken([KEY]) == {}
    remembered.give_back({KEY: known(1.0)})
    remembered.note_settled([later])
    assert remembered.taken([KEY]) == {KEY: known(2.0)}


def test_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered_quotas, "MAX_REMEMBERED", 2)
    remembered = RememberedQuotas()
    remembered.give_back({KeyId(str(i)): None for i in range(3)})
    assert remembered.taken([KeyId("0")]) == {}
    assert set(remembered.taken([KeyId("1"), KeyId("2")])) == {"1", "2"}
