"""Norms, rotations and cache writes by kernels of our own, against torch's operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from tests.support.tiny_checkpoint import WHOLE, TinyCheckpoint
from tests.support.tiny_models import N_BLOCKS
from worker.batching_trial import settle_batching
from worker.compiled_recording import record
from worker.compiled_shortening import shortened
from worker.kernels import are_there
from worker.kv_store import FloatStore, write_together
from worker.row_kernels import can_keep, can_norm, can_rotate, keep_one_each, normed, rotated

pytestmark = pytest.mark.skipif(not are_there(), reason="no kernels here")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@pytest.fixture(params=[1, 3])
def n_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@DTYPES
@pytest.mark.usefixtures("n_threads")
@pytest.mark.parametrize("shape", [(1, 1, 16), (1, 3, 2, 64), (400, 576)], ids=str)
def test_rows_are_normed_and_rounded_once(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, scale = 3 * drawn(*shape, dtype=dtype), drawn(2 * shape[-1], dtype=dtype)
    exact = x.double() * (x.double().square().mean(-1, keepdim=True) + 1e-5).rsqrt() * scale[: shape[-1]].double()
    found = normed(x, scale, 1e-5)
    assert found.dtype == dtype
    allowed = torch.finfo(dtype).eps / 2 * exact.abs() + 1e-6 * exact.abs()
    assert ((found.double() - exact).abs() <= allowed).all()
    assert torch.equal(normed(x[-1:], scale, 1e-5), found[-1:]), "a row hangs on the others"
    gaps = torch.stack((x, x), dim=-2)[..., 0, :]
    assert torch.equal(normed(gaps, scale, 1e-5), found)


@pytest.mark.parametrize("x", [torch.ones(1, 8), torch.ones(1, 64), torch.ones(1, 32).bfloat16()], ids=str)
def test_rows_that_the_scale_isnt_for_are_refused(x: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="a norm of 32 numbers"):
        normed(x, torch.ones(32), 1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_stays_none(bad: float) -> None:
    x = drawn(2, 32)
    x[0, 5] = bad
    found = normed(x, torch.ones(32), 1e-5)
    assert not found[0, 5].isfinite()
    assert found[1].isfinite().all()


@DTYPES
@pytest.mark.parametrize(("n_heads", "n_positions", "width"), [(1, 1, 32), (9, 1, 64), (3, 8, 64), (2, 5, 160)])
@pytest.mark.parametrize("is_turned", [True, False])
def test_rotations_are_torchs_to_the_bit(
    n_heads: int, n_positions: int, width: int, is_turned: bool, dtype: torch.dtype
) -> None:
    x = drawn(1, n_positions, n_heads, width, dtype=dtype).transpose(1, 2)
    if not is_turned:
        x = x.contiguous()
    cos, sin = (drawn(1, 1, n_positions, width + i, dtype=dtype)[..., :width].contiguous() for i in (0, 1))
    assert can_rotate(x, cos, sin)
    found = rotated(x, cos, sin)
    assert torch.equal(found, x * cos + torch.roll(x, [width // 2], [-1]) * sin)
    assert found.stride() == x.stride() or x.numel() == width


@pytest.mark.parametrize(
    ("x", "cos"),
    [
        (torch.zeros(1, 2, 3, 48), torch.zeros(1, 1, 3, 48)),
        (torch.zeros(2, 2, 3, 32), torch.zeros(1, 1, 3, 32)),
        (torch.zeros(1, 2, 3, 32), torch.zeros(1, 2, 3, 32)),
        (torch.zeros(1, 2, 3, 32), torch.zeros(1, 1, 3, 32).bfloat16()),
        (torch.zeros(1, 2, 3, 32), torch.zeros(1, 1, 1, 32).expand(1, 1, 3, 32)),
        (torch.zeros(1, 2, 32, 3).transpose(2, 3), torch.zeros(1, 1, 3, 32)),
        (torch.zeros(1, 2, 3, 32).half(), torch.zeros(1, 1, 3, 32).half()),
    ],
    ids=["width", "texts", "by heads", "types", "gaps", "turned", "float16"],
)
def test_other_rotations_are_left_to_torch(x: torch.Tensor, cos: torch.Tensor) -> None:
    assert not can_rotate(x, cos, torch.zeros_like(cos))


def test_other_norms_are_left_to_torch() -> None:
    for scale in (torch.ones(24), torch.ones(32).half(), torch.ones(32, device="meta")):
        assert not can_norm(scale)


@DTYPES
def test_each_session_keeps_its_own_position(dtype: torch.dtype) -> None:
    starts = [0, 7, 3]
    keys, values = (drawn(1, 3, 2, 16 + i, dtype=dtype)[..., :16].transpose(1, 2) for i in (0, 1))
    stores = [FloatStore(keys[:, :, :1], values[:, :, :1], capacity, dtype) for capacity in (1, 8, 20)]
    for store in stores:
        store.tensors[0].zero_()
    expected = [store.tensors[0].clone() for store in stores]
    for i, (both, start) in enumerate(zip(expected, starts, strict=True)):
        both[0, :, start], both[1, :, start] = keys[0, :, i], values[0, :, i]
    assert can_keep(stores[0].tensors[0], keys, values)
    kept = write_together(stores, starts, [1, 1, 1], keys, values)
    assert all(torch.equal(one, other) for one, other in zip(kept, expected, strict=True))
    stores[2].write(19, keys[:, :, :1], values[:, :, :1])
    assert torch.equal(stores[2].tensors[0][:, :, 19], torch.cat((keys[:, :, 0], values[:, :, 0])))


def test_nothing_is_written_where_there_is_no_room() -> None:
    keys = torch.ones(1, 2, 1, 16)
    both = torch.zeros(2, 2, 4, 16)
    for position in (-1, 4):
        with pytest.raises(ValueError, match=f"position {position} of 4"):
            keep_one_each([both], [position], keys, keys)
    for other in (both[..., :8], both[:, :1], both.bfloat16()):
        with pytest.raises(ValueError, match="a store"):
            keep_one_each([both, other], [0, 0], keys, keys)
    with pytest.raises(ValueError, match="1 stores for keys"):
        keep_one_each([both], [0], keys.expand(1, 2, 3, 16), keys.expand(1, 2, 3, 16))
    nowhere = torch._efficientzerotensor(keys.shape)
    with pytest.raises(ValueError, match="without memory"):
        keep_one_each([both], [0], nowhere, nowhere)
    assert not both.any()


@DTYPES
@pytest.mark.parametrize("n_sessions", [1, 5])
def test_recorded_steps_call_them(
    checkpoint: Callable[[str], TinyCheckpoint], n_sessions: int, dtype: torch.dtype
) -> None:
    stage = checkpoint("llama_wide_heads").load(WHOLE, dtype)
    settle_batching(stage)
    called = [node.target for node in shortened(record(stage, n_sessions).graph).graph.nodes]
    assert called.count(rotated) == 2 * N_BLOCKS
    assert called.count(normed) == 2 * N_BLOCKS + 1
