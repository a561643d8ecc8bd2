"""Tiny models of many architectures through coordinator, workers and client: the tokens are transformers' own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.whole_cluster import WholeCluster, greedy_ids, hop_ranges, packed_tiny, whole_cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
NAMES = ("llama", "llama_tied", "gpt2", "bloom", "gemma3", "mixtral", "deepseek_v3", "opt", "opt_projected")
PROMPTS = ([5, 9, 30, 4, 77, 12], [41], [3 + index for index in range(20)])
N_TOKENS = 12
PENALTY = {"repetition_penalty": 1.6}
"""Without it some random models, tied ones above all, say the same token for ever."""


async def differences(cluster: WholeCluster, folder: Path, name: str) -> list[str]:
    """Where the cluster's answers aren't those of the whole model; the model is removed again."""
    packed, whole = packed_tiny(folder, name)
    await cluster.add_model(name, packed)
    await cluster.until_ready(name)
    found = []
    async with cluster.client() as client:
        for prompt in PROMPTS:
            got = await client.generate(name, prompt, max_tokens=N_TOKENS, temperature=0.0, **PENALTY)
            expected = greedy_ids(whole, prompt, N_TOKENS, **PENALTY)
            if list(got.token_ids) != expected:
                found.append(f"{name} after {prompt}: {got.token_ids}, expected {expected}")
            assert hop_ranges(got) == ["0:1", "1:3", "3:4"]
    await cluster.coordinator.catalogue.remove(name)
    return found


async def test_tokens_of_every_kind_of_architecture_are_those_of_transformers(tmp_path: Path) -> None:
    async with whole_cluster(tmp_path) as cluster:
        for name, blocks in (("head", "0:1"), ("middle", "1:3"), ("tail", "3:4")):
            await cluster.join(name, blocks, chunk_tokens=8)
        assert [line for name in NAMES for line in await differences(cluster, tmp_path, name)] == []
