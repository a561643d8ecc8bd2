from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
import torch

from protocol.errors import InvalidRequestError
from protocol.ids import BlockRange
from protocol.messages import KvPrecision
from tests.support.tiny_checkpoint import WHOLE, TinyCheckpoint
from tests.support.tiny_models import CONTEXT, N_BLOCKS, TINY_CONFIGS, VOCAB_SIZE
from worker.batching_trial import settle_batching
from worker.kv_cache import KVCache
from worker.stage import Stage, StageInput

Checkpoints = Callable[[str], TinyCheckpoint]
CHUNKS = ((0, 7), (7, 12), (12, 13), (13, 14), (14, 20))  # prefill in chunks, decode, and a chunk again
CUTS = [(0, a, b, N_BLOCKS) for a, b in combinations(range(1, N_BLOCKS), 2)]
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def token_ids(n_tokens: int = 20, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB_SIZE, (n_tokens,), generator=generator, dtype=torch.int32)


def ranges(cut: Sequence[int]) -> list[BlockRange]:
    return [BlockRange(start, end) for start, end in pairwise(cut)]


def hidden_through(
    stages: Sequence[Stage], caches: Sequence[KVCache], payload: torch.Tensor, position: int
) -> torch.Tensor:
    for stage, cache in zip(stages, caches, strict=True):
        payload = stage.run([StageInput(payload=payload, position=position, cache=cache)])[0]
    return payload


def logits_through(
    stages: Sequence[Stage], caches: Sequence[KVCache], payload: torch.Tensor, position: int
) -> torch.Tensor:
    payload = hidden_through(stages[:-1], caches[:-1], payload, position)
    return stages[-1].run([StageInput(payload=payload, position=position, cache=caches[-1], n_logits=1)])[0][0]


def check_equal(stages: Sequence[Stage], whole: TinyCheckpoint) -> None:
    """Hidden states and logits of every chunk equal the whole model's."""
    ids = token_ids()
    hidden, logits = whole.expected(ids)
    for start, end in CHUNKS:
        if start == 0:
            caches = [[stage.new_cache(len(ids)) for stage in stages] for _ in range(2)]
        torch.testing.assert_close(
            hidden_through(stages, caches[0], ids[start:end], start), hidden[start:end], **TOLERANCE
        )
        torch.testing.assert_close(
            logits_through(stages, caches[1], ids[start:end], start), logits[end - 1], **TOLERANCE
        )


@pytest.mark.parametrize("name", TINY_CONFIGS)
def test_stages_equal_the_whole_model_wherever_it_is_cut(checkpoint: Checkpoints, name: str) -> None:
    whole = checkpoint(name)
    needed = {blocks for cut in CUTS for blocks in ranges(cut)}
    stages = {blocks: whole.load(blocks) for blocks in needed}
    for cut in CUTS:
        check_equal([stages[blocks] for blocks in ranges(cut)], whole)


@pytest.mark.parametrize("kind", ["dynamic", "linear", "yarn", "longrope"])
def test_stages_rotate_as_the_whole_model_does(
    checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    config = TINY_CONFIGS["llama"]()
    config.rope_parameters = {"rope_type": kind, "rope_theta": 10_000.0, "factor": 2.0}
    if kind != "dynamic":
        config.rope_parameters["original_max_position_embeddings"] = CONTEXT // 2
    if kind == "longrope":
        n_frequencies = config.head_dim // 2
        config.rope_parameters |= {"short_factor": [1.5] * n_frequencies, "long_factor": [3.0] * n_frequencies}
    monkeypatch.setitem(TINY_CONFIGS, f"llama_by_{kind}", lambda: config)
    whole = checkpoint(f"llama_by_{kind}")
    check_equal([whole.load(blocks) for blocks in ranges((0, 1, 3, N_BLOCKS))], whole)


@pytest.mark.parametrize("name", TINY_CONFIGS)
def test_views_of_a_loaded_span_equal_the_whole_model(checkpoint: Checkpoints, name: str) -> None:
    whole = checkpoint(name)
    loaded = whole.load(WHOLE)
    check_equal([loaded], whole)
    check_equal([loaded.view(blocks) for blocks in ranges((0, 1, 3, N_BLOCKS))], whole)
    tail = whole.load(BlockRange(1, N_BLOCKS))
    check_equal([loaded.view(BlockRange(0, 2)), tail.view(BlockRange(2, N_BLOCKS))], whole)
    check_equal([loaded], whole)  # still itself


@pytest.mark.parametrize("name", TINY_CONFIGS)
def test_a_rolled_back_position_runs_again_the_same(checkpoint: Checkpoints, name: str) -> None:
    stage = checkpoint(name).load(WHOLE)
    ids = token_ids()
    cache = stage.new_cache(20)
    first = hidden_through([stage], [cache], ids, 0)
    cache.truncate(11)
    hidden_through([stage], [cache], token_ids(5, seed=2), 11)  # another continuation, which must leave no trace
    cache.truncate(11)
    torch.testing.assert_close(hidden_through([stage], [cache], ids[11:], 11), first[11:], **TOLERANCE)


ROUNDS = ((7, 1, 12, 3), (1, 1, 1, 1), (5, 1, 0, 1), (1, 4, 1, 6), (0, 1, 1, 1))
"""New tokens of four sessions: prompts in chunks and decode, together in every mixture."""


@pytest.mark.parametrize("name", TINY_CONFIGS)
def test_sessions_that_run_together_equal_the_whole_model(checkpoint: Checkpoints, name: str) -> None:
    whole = checkpoint(name)
    stages = [whole.load(blocks) for blocks in ranges((0, 2, 4))]
    for stage in stages:
        settle_batching(stage)
    ids = [token_ids(n_tokens, seed) for seed, n_tokens in enumerate(map(sum, zip(*ROUNDS, strict=True)))]
    expected = [whole.expected(of_session) for of_session in ids]
    caches = [[stage.new_cache(len(of_session)) for stage in stages] for of_session in ids]
    for n_tokens in ROUNDS:
        running = [i for i, n_new in enumerate(n_tokens) if n_new]
        starts = [cache[0].length for cache in caches]
        passed = {i: ids[i][starts[i] : starts[i] + n_tokens[i]] for i in running}
        for k, stage in enumerate(stages):
            inputs = [
                # the first of them wants hidden states where the others want logits, of all new positions
                StageInput(
                    payload=passed[i],
                    position=starts[i],
                    cache=caches[i][k],
                    n_logits=n_tokens[i] if stage.is_last and i != running[0] else 0,
                )
                for i in running
            ]
            passed = dict(zip(running, stage.run(inputs), strict=True))
        for i in running:
            rows = slice(starts[i], starts[i] + n_tokens[i])
            hidden, logits = expected[i][0][rows], expected[i][1][rows]
            torch.testing.assert_close(passed[i], hidden if i == running[0] else logits, **TOLERANCE)


@pytest.mark.parametrize("held_as", ["bfloat16", "int8"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss", "bloom", "deepseek_v3"])
def test_caches_in_fewer_bits_are_close_together_and_alone(
    checkpoint: Checkpoints, name: str, held_as: KvPrecision
) -> None:
    whole = checkpoint(name)
    stage = whole.load(WHOLE)
    settle_batching(stage)
    ids = [token_ids(n_tokens, seed) for seed, n_tokens in enumerate((15, 9, 20))]
    alone, together = ([stage.new_cache(20, held_as) for _ in ids] for _ in range(2))
    cosine = torch.nn.functional.cosine_similarity
    to_whole, to_apart = [], []
    for start, end in ((0, 8), (8, 9), (9, 20)):  # what is there of each
        rows = [i for i in range(3) if len(ids[i]) > start]
        inputs = [StageInput(payload=ids[i][start:end], position=start, cache=together[i]) for i in rows]
        for i, one, got in zip(rows, inputs, stage.run(inputs), strict=True):
            to_whole.append(cosine(got, whole.expected(ids[i])[0][start:end]))
            to_apart.append(cosine(got, stage.run([replace(one, cache=alone[i])])[0]))
    # not of every token: the least difference may send one to other experts
    assert torch.cat(to_whole).median() > 0.999
    assert torch.cat(to_apart).median() > 0.9999


def test_a_view_is_made_once_and_shares_the_weights(checkpoint: Checkpoints) -> None:
    loaded = checkpoint("llama").load(WHOLE)
    part = BlockRange(1, 3)
    assert loaded.view(part) is loaded.view(part)
    assert loaded.view(WHOLE) is loaded
    mine = {t.data_ptr() for t in loaded._model.parameters()}
    assert {t.data_ptr() for t in loaded.view(part)._model.parameters()} < mine


def test_a_view_outside_of_the_span_is_refused(checkpoint: Checkpoints) -> None:
    with pytest.raises(InvalidRequestError, match="0:2 are not within 1:3"):
        checkpoint("llama").load(BlockRange(1, 3)).view(BlockRange(0, 2))


def test_a_stage_holds_its_share_of_the_weights_only(checkpoint: Checkpoints) -> None:
    whole = checkpoint("llama")
    sizes = [whole.load(blocks).n_weight_bytes() for blocks in (BlockRange(0, 1), BlockRange(1, 2), WHOLE)]
    embedding = whole.model.get_input_embeddings().weight.nbytes
    assert sizes[1] * N_BLOCKS + 2 * embedding < sizes[2] + 4096
    assert sizes[0] < sizes[1] + embedding + 64


def test_a_tied_head_is_held_once(checkpoint: Checkpoints) -> None:
    whole = checkpoint("llama_tied")
    embedding = whole.model.get_input_embeddings().weight.nbytes
    middle, tail = (whole.load(b).n_weight_bytes() for b in (BlockRange(2, 3), BlockRange(3, 4)))
    assert middle + embedding <= tail < middle + embedding + 4096


def test_cache_bytes_are_measured_by_block(checkpoint: Checkpoints) -> None:
    widths = checkpoint("deepseek_v3").load(BlockRange(1, 3)).kv_bytes_by_block()
    assert widths == ((8 + 4) * 4,) * 2  # the compressed keys and values, and the rotary part
    assert checkpoint("llama").load(BlockRange(0, 1)).kv_bytes_by_block() == (2 * (8 + 8) * 4,)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "gpt_oss"])
def test_bfloat16_is_close(checkpoint: Checkpoints, name: str) -> None:
    whole = checkpoint(name)
    stages = [whole.load(blocks, torch.bfloat16) for blocks in ranges((0, 2, 4))]
    ids = token_ids()
    got = hidden_through(stages, [stage.new_cache(20) for stage in stages], ids, 0)
    assert got.dtype == torch.bfloat16
    expected, _ = whole.expected(ids)
    assert torch.nn.functional.cosine_similarity(got.float(), expected).min() > 0.98
