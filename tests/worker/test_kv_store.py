from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protocol.messages import KvPrecision
from worker.kv_store import CodeStore, new_store, write_together

N_TOKENS = 5


def kept(
    keys: torch.Tensor, values: torch.Tensor, held_as: KvPrecision | None
) -> tuple[torch.Tensor, torch.Tensor]:
    store = new_store(keys, values, N_TOKENS, held_as)
    store.write(0, keys, values)
    return store.read(N_TOKENS)


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(64, 64), (8, 4), (80, 80), (512, 64)]),
    st.floats(1e-3, 1e4),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_codes_differ_by_half_a_step_of_their_group_at_most(
    seed: int, widths: tuple[int, int], outlier: float, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(1, 2, N_TOKENS, width, generator=generator).to(dtype) for width in widths)
    keys[..., 0] *= outlier
    for read, given_ in zip(kept(keys, values, "int8"), (keys, values), strict=True):
        assert (read.dtype, read.shape) == (dtype, given_.shape)
        groups = {(64, 64): 32, (8, 4): 4, (80, 80): 20, (512, 64): 32}[widths]
        difference = (read.float() - given_.float()).unflatten(3, (-1, groups)).abs()
        largest = given_.float().unflatten(3, (-1, groups)).abs().amax(-1, keepdim=True)
        # the scale is rounded to bfloat16; and so is the product, where that is computed in
        allowed = largest * (0.505 / 127 + (0 if dtype == torch.float32 else 2**-8))
        assert (difference <= allowed).all()


def test_zeros_stay_zeros_and_what_is_no_number_stays_none() -> None:
    keys = torch.zeros(1, 1, N_TOKENS, 64)
    values = keys.clone()
    values[0, 0, 1, 3], values[0, 0, 2, 40] = float("nan"), float("inf")
    read_keys, read_values = kept(keys, values, "int8")
    assert torch.equal(read_keys, keys)
    assert not read_values[0, 0, 1, 3].isfinite()
    assert not read_values[0, 0, 2, 40].isfinite()
    assert torch.equal(read_values[0, 0, 0], values[0, 0, 0])


@pytest.mark.parametrize(("held_as", "dtype"), [(None, torch.float32), ("bfloat16", torch.bfloat16)])
def test_floats_are_kept_as_they_are_rounded(held_as: KvPrecision | None, dtype: torch.dtype) -> None:
    keys, values = torch.randn(1, 2, N_TOKENS, 6), torch.randn(1, 2, N_TOKENS, 2)
    for read, given_ in zip(kept(keys, values, held_as), (keys, values), strict=True):
        assert read.dtype == torch.float32
        assert torch.equal(read, given_.to(dtype).float())


def test_codes_take_a_little_more_than_a_byte() -> None:
    keys = torch.randn(1, 3, N_TOKENS, 64)
    store = new_store(keys, keys, N_TOKENS, "int8")
    assert isinstance(store, CodeStore)
    assert store.n_bytes == 2 * keys.numel() * 34 // 32


@pytest.mark.parametrize("value_width", [64, 32])
@pytest.mark.parametrize("held_as", [None, "bfloat16", "int8"])
def test_what_is_written_together_is_kept_as_if_it_were_written_alone(
    held_as: KvPrecision | None, value_width: int
) -> None:
    n_new, starts = [2, 1, 3], [0, 4, 1]
    keys, values = (torch.randn(1, 6, 3, width).transpose(1, 2) for width in (64, value_width))
    together, alone = ([new_store(keys, values, N_TOKENS, held_as) for _ in n_new] for _ in range(2))
    write_together(together, starts, n_new, keys, values)
    shares = zip(keys.split_with_sizes(n_new, 2), values.split_with_sizes(n_new, 2), strict=True)
    for store, other, start, n, share in zip(alone, together, starts, n_new, shares, strict=True):
        store.write(start, *share)
        for mine, others in zip(store.read(start + n), other.read(start + n), strict=True):
            assert torch.equal(mine[:, :, start:], others[:, :, start:])


@pytest.mark.parametrize("value_width", [64, 32])
def test_floats_take_what_their_type_takes(value_width: int) -> None:
    keys, values = torch.randn(1, 3, N_TOKENS, 64), torch.randn(1, 3, N_TOKENS, value_width)
    assert new_store(keys, values, N_TOKENS, "bfloat16").n_bytes == 2 * (keys.numel() + values.numel())
