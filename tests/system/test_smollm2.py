"""SmolLM2 over 1, 2, 3 and 5 workers and over ranges that overlap: always transformers' tokens, in float32."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from client.results import Generation
from tests.coordinator.packing_support import check_tensors
from tests.support.smollm2 import CHAT, N_BLOCKS, N_TOKENS, NAME, PLAIN, Answer, Reference
from tests.support.whole_cluster import Packed, WholeCluster, hop_ranges, whole_cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
MEMORY_BYTES = 10**9
SPLITS = {
    "1 worker": ("0:30",),
    "2 workers": ("0:15", "15:30"),
    "3 workers": ("0:10", "10:20", "20:30"),
    "5 workers": ("0:3", "3:9", "9:16", "16:29", "29:30"),
    "2 workers that overlap": ("0:20", "15:30"),
}
SAMPLED = {"max_tokens": 16, "temperature": 1.1, "top_p": 0.95, "repetition_penalty": 1.1, "seed": 11}


@asynccontextmanager
async def serving(folder: Path, packed: Packed, split: Sequence[str]) -> AsyncIterator[WholeCluster]:
    async with whole_cluster(folder) as cluster:
        await cluster.add_model(NAME, packed)
        for index, blocks in enumerate(split):
            await cluster.join(f"worker-{index}", blocks, files=packed, memory_bytes=MEMORY_BYTES)
        await cluster.until_ready(NAME)
        yield cluster


def check(got: Generation, expected: Answer) -> None:
    assert list(got.token_ids) == expected.ids
    assert got.text == expected.text
    assert got.prompt_tokens == len(expected.prompt)
    assert got.finish_reason == ("length" if len(expected.ids) == N_TOKENS else "stop")


@pytest.fixture(scope="module")
def sampled() -> dict[str, tuple[int, ...]]:
    """The seeded answer of the split that was tried first; that of all others has to be the same."""
    return {}


def test_packed_tensors_are_those_of_transformers(smollm2: Packed, smollm2_reference: Reference) -> None:
    check_tensors(smollm2.store, smollm2.model, smollm2_reference.whole)
    manifest = smollm2.model.manifest
    assert (manifest.n_blocks, manifest.is_chat, manifest.kv_elements_per_token) == (N_BLOCKS, True, 384)


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
async def test_tokens_are_those_of_transformers_however_the_model_is_cut(
    scratch: Path,
    smollm2: Packed,
    smollm2_reference: Reference,
    sampled: dict[str, tuple[int, ...]],
    split: Sequence[str],
) -> None:
    folder = scratch / "-".join(split).replace(":", "_")
    async with serving(folder, smollm2, split) as cluster, cluster.client() as client:
        async with asyncio.TaskGroup() as tasks:
            greedy = {"max_tokens": N_TOKENS, "temperature": 0.0}
            text = tasks.create_task(client.generate(NAME, PLAIN, **greedy))
            chat = tasks.create_task(client.generate(NAME, CHAT, **greedy))
            seeded = tasks.create_task(client.generate(NAME, PLAIN, **SAMPLED))
        check(text.result(), smollm2_reference.plain)
        check(chat.result(), smollm2_reference.chat)
        ids = seeded.result().token_ids
        assert sampled.setdefault("ids", ids) == ids
        plain = text.result()
        starts = [stage.start for stage in plain.route]
        assert [stage.end for stage in plain.route] == [*starts[1:], N_BLOCKS]
        assert len(hop_ranges(plain)) == len(split)


async def test_twenty_at_once_give_what_each_gives_alone(scratch: Path, smollm2: Packed) -> None:
    texts = [" ".join(["one two three four five six seven"] * (1 + index % 3)) + f" {index}" for index in range(20)]
    options = [
        {"max_tokens": 5, "temperature": 0.0} if index % 2 else {**SAMPLED, "max_tokens": 5, "seed": index}
        for index in range(20)
    ]
    async with serving(scratch / "twenty", smollm2, ("0:15", "15:30")) as cluster, cluster.client() as client:
        alone = [await client.generate(NAME, text, **how) for text, how in zip(texts, options, strict=True)]
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(client.generate(NAME, text, **how))
                for text, how in zip(texts, options, strict=True)
            ]
        assert [task.result().token_ids for task in running] == [one.token_ids for one in alone]
