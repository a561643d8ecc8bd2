"""Workers that are banned in the middle of generations: those go on elsewhere as if nothing had happened."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from benchmarks.streams import WatchedStream
from protocol.trust_rest import TrustRequest
from tests.support.relayed_cluster import RANGES
from tests.support.whole_cluster import Packed, WholeCluster, greedy_ids, packed_tiny, whole_cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]
PROMPT = [5, 9, 30, 4, 77, 12]
N_TOKENS = 200
WITHIN_S = 100.0
GREEDY: dict[str, Any] = {"max_tokens": N_TOKENS, "temperature": 0.0}
SAMPLED: dict[str, Any] = {"max_tokens": N_TOKENS, "temperature": 0.8, "seed": 3}


@dataclass(frozen=True, slots=True)
class Served:
    """Two workers for each half of a model, and what is said when nobody is banned."""

    cluster: WholeCluster
    files: Packed
    answers: Sequence[tuple[int, ...]]

    async def decide(self, name: str, action: str) -> None:
        """Ban or pardon a worker, as an operator does."""
        worker_id = self.cluster.members[name].worker.worker_id
        body = TrustRequest(action=action, reason="a test")  # type: ignore[arg-type]  # one of the four
        await self.cluster.admin("POST", f"/admin/v1/workers/{worker_id}/trust", body)

    async def let_in_again(self, name: str) -> None:
        """Pardon it and start it anew: it ended when it was banned."""
        await self.cluster.members[name].ended()
        assert self.cluster.members[name].refusal is not None
        await self.decide(name, "pardon")
        await self.cluster.join(name, RANGES[name.partition("-")[0]], files=self.files)
        await self.cluster.until_ready()

    def name_at(self, stream: WatchedStream, place: int) -> str:
        """Who works on a stream, at that place of its route."""
        names = {member.worker.worker_id: name for name, member in self.cluster.members.items()}
        return names[stream.worker_ids[place]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    folder = tmp_path_factory.mktemp("banned")
    packed, whole = packed_tiny(folder, "llama", max_position_embeddings=4096, eos_token_id=None)
    async with whole_cluster(folder) as cluster:
        await cluster.add_model("tiny", packed)
        for stage, blocks in RANGES.items():
            for copy in "ab":
                await cluster.join(f"{stage}-{copy}", blocks, files=packed)
        await cluster.until_ready()
        sampled = (await cluster.generate("tiny", PROMPT, **SAMPLED)).token_ids
        yield Served(cluster, packed, (tuple(greedy_ids(whole, PROMPT, N_TOKENS)), sampled))


@pytest.mark.parametrize("place", [0, 1], ids=["head", "tail"])
@pytest.mark.parametrize("seed", [1, 2])
async def test_a_ban_in_mid_stream_changes_no_token(served: Served, place: int, seed: int) -> None:
    n_before = random.Random(seed).randrange(1, N_TOKENS - 20)
    async with asyncio.timeout(WITHIN_S), served.cluster.client() as client, asyncio.TaskGroup() as tasks:
        streams = [WatchedStream(client.stream("tiny", PROMPT, **options), tasks) for options in (GREEDY, SAMPLED)]
        await streams[0].reached(n_before)
        banned = served.name_at(streams[0], place)
        await served.decide(banned, "ban")
        found = [await stream.finished() for stream in streams]
    assert found[0].failovers >= 1
    assert [one.token_ids for one in found] == list(served.answers)
    await served.let_in_again(banned)
