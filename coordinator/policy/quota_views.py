"""How much of a key's rates is used, for operators, and how much is left, for who holds the key."""

from __future__ import annotations

import math

from coordinator.policy.quota import PERIODS_S, RATE_NAMES, Account, at, rate_of
from protocol.key_limits import KeyLimits, RateLeft
from protocol.quota_rest import RateUse


def rate_uses(account: Account, limits: KeyLimits, now_s: float) -> tuple[RateUse, ...]:
    """Every rate that is limited and how much of it is used, for people."""
    return tuple(
        RateUse(limit_name=name, limit=limit, used=math.ceil(meter.used))
        for name, meter in zip(RATE_NAMES, at(account, limits, now_s).meters, strict=True)
        if (limit := rate_of(limits, name)) is not None
    )


def rates_left(account: Account, limits: KeyLimits) -> tuple[RateLeft, ...]:
    """Every rate that is limited and what is left of it at the account's time, for who asks for routes."""
    return tuple(
        RateLeft(
            limit_name=name,
            limit=limit,
            n_left=max(0, math.floor(limit - meter.used)),
            full_in_s=meter.used * PERIODS_S[name] / limit,
        )
        for name, meter in zip(RATE_NAMES, account.meters, strict=True)
        if (limit := rate_of(limits, name)) is not None
    )
