"""Hidden states and vectors through coordinator, workers and client: they are transformers' own."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from client.api import Client
from client.config import ClientConfig
from client.sync_api import SyncClient
from protocol.api_key import api_key_from_text
from protocol.audit_rest import AuditInfo
from protocol.errors import ContextExceededError, InvalidRequestError, NotFoundError
from protocol.key_limits import KeyLimits
from protocol.quota_rest import UsageList
from tests.support.coordinators import key_of
from tests.support.tiny_models import N_BLOCKS
from tests.support.waiting import eventually
from tests.support.whole_cluster import Member, WholeCluster, packed_tiny, whole_cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
TEXTS = ([5, 9, 30, 4, 77, 12], [41], [3 + index for index in range(40)], [7, 8, 9, 10, 11])
ENCODERS = ("bert", "roberta", "distilbert", "modernbert")
DECODERS = ("gpt2", "gemma3")
CHUNK = 16
"""Shorter than the longest text: a decoder's comes in pieces, an encoder's must not."""


@torch.inference_mode()
def states_of(whole: PreTrainedModel, text: list[int], block: int) -> np.ndarray:
    out = whole.base_model(torch.tensor([text]), output_hidden_states=True)
    return out.hidden_states[block][0].numpy()


def mean_of(whole: PreTrainedModel, text: list[int]) -> np.ndarray:
    vector = states_of(whole, text, N_BLOCKS).mean(axis=0)
    return vector / np.linalg.norm(vector)


async def check_states(client: Client, name: str, whole: PreTrainedModel, blocks: tuple[int, ...]) -> None:
    for block in blocks:
        for text in TEXTS:
            got = await client.hidden_states(name, text, block=block)
            np.testing.assert_allclose(got, states_of(whole, text, block), rtol=1e-4, atol=1e-4, err_msg=name)


async def test_states_of_any_block_are_those_of_transformers(tmp_path: Path) -> None:
    async with whole_cluster(tmp_path) as cluster:
        for worker, blocks in (("head", "0:1"), ("middle", "1:3"), ("tail", "3:4")):
            await cluster.join(worker, blocks, chunk_tokens=CHUNK)
        for name in (*ENCODERS, *DECODERS):
            packed, whole = packed_tiny(tmp_path, name)
            await cluster.add_model(name, packed)
            await cluster.until_ready(name)
            async with cluster.client() as client:
                await check_states(client, name, whole, (0, 1, 2, 4) if name in DECODERS else (0, 2, 4))
                found = await client.embed(name, TEXTS, pooling="mean")
                expected = [mean_of(whole, text) for text in TEXTS]
                np.testing.assert_allclose(found.vectors, expected, rtol=1e-4, atol=1e-5, err_msg=name)
                assert found.n_tokens == sum(map(len, TEXTS))
            await cluster.coordinator.catalogue.remove(name)


async def test_vectors_outlive_a_worker_and_what_they_took_is_counted(tmp_path: Path) -> None:
    packed, whole = packed_tiny(tmp_path, "bert")
    texts = [[5 + number % 80, *TEXTS[number % 4]] for number in range(40)]
    expected = [mean_of(whole, text) for text in texts]
    async with whole_cluster(tmp_path) as cluster:
        await cluster.add_model("tiny", packed)
        await cluster.join("head", "0:2")
        for worker in ("one", "other"):
            await cluster.join(worker, "2:4")
        await cluster.until_ready()
        await check_audited(cluster)
        key = await cluster.new_key(KeyLimits(tokens_per_day=10_000))
        async with cluster.client(key) as client:
            async with asyncio.TaskGroup() as tasks:
                asked = tasks.create_task(client.embed("tiny", texts))
                await asyncio.shield((await busy_one(cluster)).vanish())
            found = asked.result()
            np.testing.assert_allclose(found.vectors, expected, rtol=1e-4, atol=1e-5)
            assert (found.pooling, found.n_tokens) == ("mean", sum(map(len, texts)))
            await eventually(lambda: n_running(cluster) == 0)
            with pytest.raises(InvalidRequestError, match=r"tiny is an encoder .* `client embed`"):
                await client.generate("tiny", [5], max_tokens=4)
        used = (await cluster.admin("GET", f"/admin/v1/usage?key={key.key_id}")).read(UsageList).usage
        assert sum(day.n_completion_tokens for day in used) == 0
        assert 0 < sum(day.n_prompt_tokens for day in used) <= found.n_tokens


async def check_audited(cluster: WholeCluster) -> None:
    """An audit of an encoder's blocks gives all positions at once."""
    worker_id = cluster.members["one"].worker.worker_id
    found = (await cluster.admin("POST", f"/admin/v1/workers/{worker_id}/audits")).read(AuditInfo)
    assert (found.outcome, found.partner_outcome) == ("passed", "passed"), found.reason
    assert found.difference is not None
    assert found.difference < 1e-4


async def busy_one(cluster: WholeCluster) -> Member:
    """One of the two that hold the last blocks, once it has run something."""
    two = [cluster.members[name] for name in ("one", "other")]
    await eventually(lambda: any(one.worker.engine.stats().n_positions_run > 40 for one in two))
    return max(two, key=lambda one: one.worker.engine.stats().n_positions_run)


def n_running(cluster: WholeCluster) -> int:
    """Sessions that workers still have."""
    there = [m for m in cluster.members.values() if m.task is not None and not m.task.done()]
    return sum(member.worker.engine.stats().n_sessions for member in there)


async def test_what_cannot_be_embedded_is_refused_in_words(tmp_path: Path) -> None:
    packed, _ = packed_tiny(tmp_path, "roberta")
    async with whole_cluster(tmp_path) as cluster:
        await cluster.add_model("tiny", packed)
        await cluster.join("all", "0:4")
        await cluster.until_ready()
        async with cluster.client() as client:
            # of its 64 positions RoBERTa needs two for the padding
            assert (await client.embed("tiny", [[5] * 62])).n_tokens == 62
            with pytest.raises(ContextExceededError, match="input 1 has 63 tokens; the model takes 62"):
                await client.embed("tiny", [[5], [5] * 63])
            cut = await client.embed("tiny", [[5] * 63], truncate=True, dimensions=8)
            assert (cut.n_truncated, cut.n_tokens, cut.vectors.shape) == (1, 62, (1, 8))
            assert float(np.linalg.norm(cut.vectors)) == pytest.approx(1.0)
            for refused, words in (
                (client.embed("tiny", []), "at least one"),
                (client.embed("tiny", [[]]), "input 0: .* empty"),
                (client.embed("tiny", ["text"]), "input 0: .* no tokenizer"),
                (client.embed("tiny", [[96]]), "token id 96 .* 96"),
                (client.embed("tiny", [[5]], dimensions=33), "dimensions is 33; .* 32"),
                (client.hidden_states("tiny", [5], block=5), "after block 5 of tiny, which has 4"),
                (client.embed("tiny", [[5]], nonsense=1), "not an option"),
            ):
                with pytest.raises(InvalidRequestError, match=words):
                    await refused
            with pytest.raises(NotFoundError):
                await client.embed("nothing", [[5]])
        config = ClientConfig(
            url=cluster.coordinator.url,
            api_key=api_key_from_text(key_of(cluster.coordinator, "client")),
            cache=tmp_path / "client-sync",
        )
        assert await asyncio.to_thread(shapes_without_asyncio, config) == ((1, 32), (2, 32))


def shapes_without_asyncio(config: ClientConfig) -> tuple[tuple[int, ...], ...]:
    with SyncClient(config=config) as client:
        return client.embed("tiny", [[5, 6]]).vectors.shape, client.hidden_states("tiny", [5, 6], block=2).shape
