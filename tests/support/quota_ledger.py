"""A key's generations in the ledger of quotas: begun, ended, and what is used of the limits then."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from coordinator.repository import Repository
from coordinator.stored_rows import NewGeneration
from protocol.control_messages import GenerationReport
from protocol.ids import KeyId, ModelName, Revision, SessionId, WorkerId
from protocol.key_limits import KeyLimits

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
KEY, TAIL = KeyId("k1"), WorkerId("w-b")
ROUTE = ((WorkerId("w-a"), 0, 3), (TAIL, 3, 4))
Outcome = Literal["stop", "cancelled", "failed"]


async def add_key(repository: Repository, limits: KeyLimits, key_id: KeyId = KEY) -> None:
    await repository.add_api_key(key_id, "n", "client", "h", NOW, limits=limits)


async def begin(
    repository: Repository,
    session: str,
    n_prompt: int,
    max_tokens: int,
    *,
    now: datetime = NOW,
    continues: str | None = None,
    replaces: str | None = None,
    key_id: KeyId = KEY,
    is_opening_told: bool = False,
) -> None:
    new = NewGeneration(
        session_id=SessionId(session),
        key_id=key_id,
        model=ModelName("m"),
        revision=Revision("r"),
        route=ROUTE,
        n_prompt_tokens=n_prompt,
        max_tokens=max_tokens,
        at=now,
        continues=None if continues is None else SessionId(continues),
        replaces=None if replaces is None else SessionId(replaces),
        is_opening_told=is_opening_told,
    )
    await repository.record_generation(new)


async def end(
    repository: Repository,
    session: str,
    n_prompt: int,
    n_tokens: int,
    outcome: Outcome = "stop",
    *,
    now: datetime = NOW,
) -> bool:
    report = GenerationReport(
        session_id=SessionId(session), n_prompt_tokens=n_prompt, n_completion_tokens=n_tokens, outcome=outcome
    )
    return await repository.finish_generation(report, now, reported_by=TAIL) is not None


async def used(repository: Repository, now: datetime = NOW) -> tuple[list[int], int]:
    """Of every rate, and how many run."""
    found = await repository.quotas.quota(KEY, now)
    return [rate.used for rate in found.rates], found.n_running
