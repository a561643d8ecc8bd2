"""Attempts of a generation that failed, and what its client knows after them."""

from __future__ import annotations

import random

from client.failover import (
    AttemptFailed,
    Failover,
    after_failure,
)
from protocol.errors import (
    BrigadeError,
    HopLostError,
)
from protocol.ids import SessionId, WorkerId
from protocol.rest import STALLED, HopFailure

WORKERS = [WorkerId(f"w-{letter * 26}") for letter in "abcdefghijklmnopqrstuvwxyz"]
A, B = WORKERS[:2]
FIRST = Failover()
RNG = random.Random(1)


def lost(worker_id: WorkerId | None = A, *, error: BrigadeError | None = None) -> AttemptFailed:
    error = error or HopLostError("gone")
    return AttemptFailed(error, HopFailure(worker_id=worker_id, code=STALLED if worker_id is None else error.code))


def heard_after(before: Failover, failed: AttemptFailed, *, n_new_tokens: int, now_s: float) -> Failover:
    return after_failure(
        before, failed, session_id=SessionId("s"), has_been_heard=True, n_new_tokens=n_new_tokens, now_s=now_s
    )


def known_after(*failed: AttemptFailed, n_new_tokens: int = 0, now_s: float = 0.0) -> Failover:
    known = FIRST
    for one in failed:
        known = heard_after(known, one, n_new_tokens=n_new_tokens, now_s=now_s)
    return known
