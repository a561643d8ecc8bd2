"""Routes that SQLite records by plain statements: the same rows as otherwise."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from coordinator.database import opened
from coordinator.generation_rows import RatesLeft, begin_generations
from coordinator.repository import Repository
from coordinator.sqlite_routes import begin_generations_plainly
from protocol.ids import KeyId, SessionId
from protocol.key_limits import UNLIMITED, KeyLimits
from tests.coordinator.test_postgres_routes import KEY, NOW, add_key, new, rows_of_all


async def test_the_rows_are_those_that_are_written_otherwise(tmp_path: Path) -> None:
    """Several of several keys at once, some without limits, some that are refused."""
    quoted, free = KeyId("k'2"), KeyId("free")
    together = [
        [new("a", is_opening_told=True), new("b", quoted), new("c", free), new("d"), new("e"), new("f")],
        [replace(new("g"), n_prompt_tokens=1, max_tokens=1), new("h", quoted), new("i", free)],
        [new("j", quoted)],
    ]
    results: list[Any] = []
    for begin in (begin_generations, begin_generations_plainly):
        async with opened(f"sqlite+aiosqlite:///{tmp_path / begin.__name__}") as engine:
            repository = Repository(engine)
            limits = KeyLimits(requests_per_min=4, tokens_per_day=95, max_concurrent=4)
            for key_id, its in ((KEY, limits), (quoted, KeyLimits(tokens_per_min=40)), (free, UNLIMITED)):
                await add_key(repository, its, key_id)
            said, rates = [], []
            for i, some in enumerate(together):
                now = (NOW + timedelta(seconds=i)).timestamp
                left: RatesLeft = {}
                write: Any = (
                    repository.transactions.write_plainly
                    if begin is begin_generations_plainly
                    else repository.transactions.write_rows
                )
                refusals = await write(
                    lambda rows, begin=begin, some=some, now=now, left=left: begin(rows, some, now, left)
                )
                said += [str(refusal) for refusal in refusals]
                rates.append(left)
            results.append((said, await rows_of_all(repository), rates))
    assert results[0] == results[1]
    assert results[0][0].count("None") == 7
    n_tokens = new("a").n_prompt_tokens + new("a").max_tokens
    assert [rate.n_left for rate in results[0][2][0][SessionId("a")]] == [3, 95 - n_tokens]
    assert results[0][2][0][SessionId("c")] == ()
