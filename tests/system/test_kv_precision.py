"""Key-value caches in 8 bits: the same answer however its text was cut, guessed, taken over or broken off."""

from __future__ import annotations

from pathlib import Path

from tests.support.whole_cluster import packed_tiny, whole_cluster
from tests.system.test_speculation import make_guesses_cheap

PROMPT = [5, 9, 30, 4, 77, 12, 8, 61, 33, 20] * 2
N_TOKENS = 250
"""So many that a worker which is told to vanish early on has done so long before the end."""
CHANGES = {"max_position_embeddings": 4096, "eos_token_id": None}


async def test_guesses_a_workers_death_and_the_next_turn_leave_the_answer_as_it_is(tmp_path: Path) -> None:
    packed, _ = packed_tiny(tmp_path, "llama", **CHANGES)
    async with whole_cluster(tmp_path) as cluster:
        await cluster.add_model("tiny", packed)
        for name, blocks in (("head", "0:2"), ("a", "2:4"), ("b", "2:4")):
            await cluster.join(name, blocks, files=packed, kv_precision="int8")
        await cluster.until_ready()
        assert all("caches in int8" in member.lines[-1] for member in cluster.members.values())
        plain = await cluster.generate("tiny", PROMPT, max_tokens=N_TOKENS, speculate=False)
        members = {member.worker.worker_id: member for member in cluster.members.values()}
        make_guesses_cheap(member.worker.data_plane for member in members.values())
        options = {"max_tokens": N_TOKENS, "temperature": 0.0}
        async with cluster.client() as client, client.stream("tiny", PROMPT, **options) as pieces:
            n_before = 0
            async for _ in pieces:
                n_before += 1
                if n_before == 30:
                    await members[pieces.result.route[-1].worker_id].vanish()
            broken = pieces.result
            assert broken.token_ids == plain.token_ids
            assert (broken.failovers, broken.finish_reason) == (1, "length")
            assert broken.drafted_tokens > 0
            assert [stage.kv_precision for stage in broken.route] == ["int8", "int8"]
            more = [*PROMPT, *broken.token_ids, 8, 9, 10]
            again = await client.generate("tiny", more, **options)
        anew = await cluster.generate("tiny", more, **options)
        assert again.token_ids == anew.token_ids
        assert anew.cached_tokens == 0
        assert again.cached_tokens > N_TOKENS  # all but the guesses of the last round
