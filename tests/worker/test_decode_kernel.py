"""Attention by a kernel of our own, against float64; and that it is never told what isn't there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from protocol.messages import KvPrecision
from tests.support.tiny_checkpoint import WHOLE, TinyCheckpoint
from worker import decode_kernel
from worker.batching_trial import TOLERANCES, difference, settle_batching, trial_payload
from worker.decode_attention import DecodeAttention, attend_one, attend_one_by_one
from worker.kernels import are_there
from worker.stage import StageInput

pytestmark = pytest.mark.skipif(not are_there(), reason="no kernels here")
CAPACITY = 1100
SHAPES = [(3, 3, 64), (1, 1, 16), (1, 2, 48), (1, 4, 80), (2, 5, 32), (8, 1, 128), (1, 7, 256)]
"""Key heads, heads that share each, and width."""
LENGTHS = [(1,), (1, 2, 3, 4, 5, 8, 9), (1000, 3, 130)]


@pytest.fixture(params=[1, 3])
def n_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def drawn(shape: Sequence[int], seed: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def block_of(
    lengths: Sequence[int], shape: tuple[int, int, int], dtype: torch.dtype
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Queries as a model gives them, and caches behind whose positions lies what is no number."""
    n_key_heads, n_groups, width = shape
    query = drawn((1, len(lengths), n_key_heads * n_groups, width), 0, dtype).transpose(1, 2)
    kept = [drawn((2, n_key_heads, CAPACITY, width), 1 + i, dtype) for i in range(len(lengths))]
    for both, length in zip(kept, lengths, strict=True):
        both[:, :, length:] = float("nan")
    return query, kept


def parts_of(kept: Sequence[torch.Tensor], lengths: Sequence[int]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for both, length in zip(kept, lengths, strict=True):
        keys, values = both.narrow(2, 0, length).split(1)
        yield keys, values


def exact(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float | None) -> torch.Tensor:
    """(1, 1, heads, width) in float64."""
    n_groups = query.shape[1] // keys.shape[1]
    shared = (one.double().repeat_interleave(n_groups, 1) for one in (keys, values))
    return scaled_dot_product_attention(query.double(), *shared, scale=scaling).transpose(1, 2)


@pytest.mark.usefixtures("n_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_each_session_attends_to_its_own_and_is_rounded_once(
    dtype: torch.dtype, shape: tuple[int, int, int], lengths: Sequence[int], scaling: float | None
) -> None:
    query, kept = block_of(lengths, shape, dtype)
    together = DecodeAttention(lengths).attend(query, kept, scaling)
    assert together is not None
    assert together.dtype == dtype
    assert torch.equal(together, attend_one_by_one(query, parts_of(kept, lengths), scaling))
    for i, (keys, values) in enumerate(parts_of(kept, lengths)):
        expected = exact(query[:, :, i : i + 1], keys, values, scaling)
        largest = values.abs().max().item()
        allowed = torch.finfo(dtype).eps / 2 * expected.abs() + 1e-5 * largest
        assert ((together[:, i : i + 1].double() - expected).abs() <= allowed).all()
        alone = attend_one(query[:, :, i : i + 1], keys, values, scaling)
        assert torch.equal(alone, together[:, i : i + 1]), "a session hangs on the others"


def test_scores_far_apart_leave_one_position() -> None:
    keys = torch.zeros(1, 1, 40, 16)
    keys[0, 0, 23] = 1000
    values = drawn((1, 1, 40, 16), 0, torch.float32)
    assert torch.equal(attend_one(torch.ones(1, 2, 1, 16), keys, values, 1.0)[0, 0, 1], values[0, 0, 23])
    assert attend_one(-torch.ones(1, 2, 1, 16), keys, values, 1.0).isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_no_number_in_one_session_stays_there_and_is_seen(bad: float, dtype: torch.dtype) -> None:
    lengths = (9, 12, 5)
    query, kept = block_of(lengths, (3, 3, 64), dtype)
    sound = DecodeAttention(lengths).attend(query, kept, None)
    kept[1][:, :, 4] = bad
    broken = DecodeAttention(lengths).attend(query, kept, None)
    assert sound is not None
    assert broken is not None
    assert not broken[0, 1].isfinite().any()
    assert torch.equal(broken[0, [0, 2]], sound[0, [0, 2]])


def test_values_may_be_narrower_than_keys() -> None:
    query = drawn((1, 4, 1, 48), 0, torch.float32)
    keys, values = drawn((1, 2, 7, 48), 1, torch.float32), drawn((1, 2, 7, 16), 2, torch.float32)
    expected = exact(query, keys, values, None)
    torch.testing.assert_close(attend_one(query, keys, values, None), expected.float())


@pytest.mark.parametrize(
    ("query", "kept"),
    [
        (torch.zeros(1, 2, 1, 24), torch.zeros(1, 1, 3, 24)),
        (torch.zeros(1, 2, 1, 32), torch.zeros(1, 1, 3, 32, dtype=torch.bfloat16)),
        (torch.zeros(1, 2, 1, 32, dtype=torch.float16), torch.zeros(1, 1, 3, 32, dtype=torch.float16)),
        (torch.zeros(1, 2, 1, 32), torch.zeros(1, 1, 32, 3).transpose(2, 3)),
        (torch.zeros(1, 2, 1, 32, device="meta"), torch.zeros(1, 1, 3, 32, device="meta")),
        (torch.zeros(1, 2, 1, 64), torch.zeros(1, 1, 3, 32)),
        (torch.zeros(2, 2, 1, 32), torch.zeros(2, 1, 3, 32)),
    ],
    ids=[
        "no multiple of 16",
        "kept in another type",
        "float16",
        "not side by side",
        "elsewhere",
        "narrower",
        "two texts",
    ],
)
def test_what_it_cant_take_is_left_to_torch(query: torch.Tensor, kept: torch.Tensor) -> None:
    assert not decode_kernel.serves(query, kept, kept)


def test_no_address_is_read_that_isnt_there() -> None:
    query, kept = torch.zeros(1, 4, 2, 16), torch.zeros(2, 2, 3, 16)
    place = decode_kernel.place_in(kept, 3)
    with pytest.raises(ValueError, match="2 queries for 1 caches"):
        decode_kernel.attend(query, [place], 2, 16, None)
    with pytest.raises(ValueError, match="4 heads for 3 with keys"):
        decode_kernel.attend(query, [place, place], 3, 16, None)
    nowhere = torch._efficientzerotensor(query.shape)
    with pytest.raises(ValueError, match="without memory"):
        decode_kernel.attend(nowhere, [place, place], 2, 16, None)


@pytest.mark.parametrize("held_as", [None, "float32", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sessions_are_attended_together_as_alone_and_as_by_torch(
    checkpoint: Callable[[str], TinyCheckpoint],
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    held_as: KvPrecision | None,
) -> None:
    stage = checkpoint("llama_wide_heads").load(WHOLE, dtype)
    settle_batching(stage)
    generator = torch.Generator().manual_seed(0)
    together, alone, by_torch = ([stage.new_cache(12, held_as) for _ in range(3)] for _ in range(3))
    for n_tokens in ((7, 3, 9), (1, 1, 1), (1, 1, 1)):
        inputs = [
            StageInput(payload=trial_payload(stage, n, generator), position=cache.length, cache=cache)
            for n, cache in zip(n_tokens, together, strict=True)
        ]
        expected = [stage.run([replace(one, cache=own)])[0] for one, own in zip(inputs, alone, strict=True)]
        results = stage.run(inputs)
        with monkeypatch.context() as patch:
            patch.setattr(decode_kernel, "are_there", lambda: False)
            without = stage.run([replace(one, cache=own) for one, own in zip(inputs, by_torch, strict=True)])
        for got, right, other in zip(results, expected, without, strict=True):
            assert difference(got, right) <= TOLERANCES[dtype]
            assert difference(got, other) <= TOLERANCES[dtype]
