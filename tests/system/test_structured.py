"""Answers as OpenAI's clients ask for them: held to a schema, penalised, biased, with log probabilities.

The same whoever fails and whether tokens are guessed ahead.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from client.api import Client
from client.results import Generation, TokenPiece
from coordinator.file_store import FileStore
from coordinator.packing.pack import pack_model
from protocol.errors import InvalidRequestError
from tests.support.tiny_cluster import tiny_model_folder
from tests.support.tiny_tokenizer import tiny_tokenizer
from tests.support.whole_cluster import Packed, WholeCluster, packed_tiny, whole_cluster
from tests.system.test_speculation import make_guesses_cheap

PROMPT = [5, 9, 30, 4, 77, 12, 8, 61, 33, 20]
N_BEFORE = 30
"""Tokens before a worker vanishes: in the middle of the object."""
SCHEMA = {
    "type": "object",
    "properties": {
        "rows": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "id": {"type": "integer", "minimum": 1, "maximum": 999},
                    "is the": {"type": "boolean"},
                },
                "required": ["id", "is the"],
                "additionalProperties": False,
            },
            "minItems": 24,
            "maxItems": 25,
        }
    },
    "required": ["rows"],
    "additionalProperties": False,
}
ASKED: dict[str, Any] = {
    "max_tokens": 1900,
    "temperature": 0.9,
    "seed": 11,
    "presence_penalty": 0.7,
    "frequency_penalty": 0.01,
    "logit_bias": {tiny_tokenizer().token_to_id("7"): 1.5},
    "logprobs": 2,
    "json_schema": json.dumps(SCHEMA),
}


def packed_with_tokenizer(folder: Path) -> tuple[Packed, PreTrainedModel]:
    source = tiny_model_folder(folder / "source", context=2048)
    store = FileStore(folder / "packed")
    return Packed(store=store, model=pack_model(str(source), store, lambda *_: None)), (
        AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    )


async def pieces_of(
    client: Client, cluster: WholeCluster | None = None, **asked: Any
) -> tuple[list[TokenPiece], Generation]:
    """An answer; with a cluster, its tail vanishes in the middle."""
    found: list[TokenPiece] = []
    async with client.stream("tiny", PROMPT, **asked) as stream:
        async for piece in stream:
            found.append(piece)
            if cluster is not None and len(found) == N_BEFORE:
                members = {member.worker.worker_id: member for member in cluster.members.values()}
                await members[stream.result.route[-1].worker_id].vanish()
    return found, stream.result


@torch.inference_mode()
def check_logprobs(whole: PreTrainedModel, found: list[TokenPiece], n_top: int) -> None:
    """That they are what the whole model says of the same text, position by position."""
    ids = torch.tensor([[*PROMPT, *(piece.token_id for piece in found)]])
    rows = whole(ids, use_cache=False).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)
    for row, piece in zip(rows, found, strict=True):
        assert piece.logprob == pytest.approx(float(row[piece.token_id]), abs=1e-3)
        assert [value for _, value in piece.top_logprobs] == pytest.approx(
            row.topk(n_top).values.tolist(), abs=1e-3
        )


async def test_an_answer_held_to_a_schema_is_the_same_with_guesses_and_when_its_tail_dies(tmp_path: Path) -> None:
    packed, whole = packed_with_tokenizer(tmp_path)
    async with whole_cluster(tmp_path) as cluster:
        await cluster.add_model("tiny", packed)
        for name, blocks in (("head", "0:2"), ("a", "2:4"), ("b", "2:4")):
            await cluster.join(name, blocks, files=packed)
        await cluster.until_ready()
        async with cluster.client() as client:
            plain, result = await pieces_of(client, speculate=False, **ASKED)
            assert (result.finish_reason, result.drafted_tokens) == ("stop", 0)
            jsonschema.validate(json.loads(result.text), SCHEMA)
            check_logprobs(whole, plain, 2)
            with pytest.raises(InvalidRequestError, match='Unimplemented keys: \\["not"\\]'):
                await client.generate("tiny", PROMPT, json_schema='{"not": {}}')
            make_guesses_cheap(member.worker.data_plane for member in cluster.members.values())
            broken, broken_result = await pieces_of(client, cluster, **ASKED)
        assert broken_result.failovers == 1
        assert broken_result.drafted_tokens > broken_result.accepted_tokens
        assert (broken_result.token_ids, broken_result.text) == (result.token_ids, result.text)
        for piece, other in zip(broken, plain, strict=True):
            assert piece.logprob == pytest.approx(other.logprob, abs=1e-3)


async def test_a_model_without_a_tokenizer_says_that_it_takes_no_constraint(tmp_path: Path) -> None:
    packed, _ = packed_tiny(tmp_path, "llama")
    async with whole_cluster(tmp_path) as cluster:
        await cluster.add_model("tiny", packed)
        await cluster.join("all", "0:4", files=packed)
        await cluster.until_ready()
        async with cluster.client() as client:
            with pytest.raises(InvalidRequestError, match="has no tokenizer, so its answers can't be held"):
                await client.generate("tiny", PROMPT, regex="ab")
            assert (await client.generate("tiny", PROMPT, max_tokens=2, logprobs=0)).completion_tokens == 2
