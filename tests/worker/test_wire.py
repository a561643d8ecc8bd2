from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ProtocolError
from protocol.messages import MAX_DRAFTS, PROTOCOL_VERSION
from worker.wire import GROUPS, SLOW_S, WireChoice, group_of, packed, unpacked, why_exact

CHUNK = torch.zeros(128, 64, dtype=torch.bfloat16)
SLOW = CHUNK.nbytes / (2 * SLOW_S)


@given(
    n_tokens=st.integers(1, 6),
    group=st.sampled_from(GROUPS),
    n_groups=st.integers(1, 3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 100),
)
def test_what_comes_back_is_off_by_half_a_code_of_its_group(
    n_tokens: int, group: int, n_groups: int, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    states = (torch.randn(n_tokens, n_groups * group, generator=generator) * 100).to(dtype)
    back = unpacked(packed(states, group), n_tokens, group, dtype)
    assert (back.shape, back.dtype) == (states.shape, dtype)
    most = states.float().reshape(-1, group).abs().amax(dim=1, keepdim=True)
    off = (back.float() - states.float()).reshape(-1, group).abs()
    rounding = torch.finfo(dtype).eps * most
    assert bool((off <= most / 127 / 2 * 1.01 + rounding).all())


@pytest.mark.parametrize(
    ("choice", "hidden_size", "is_in_vain"), [("int8", 100, True), ("int8", 80, False), ("auto", 100, False)]
)
def test_widths_that_int8_cannot_take_are_said(choice: WireChoice, hidden_size: int, *, is_in_vain: bool) -> None:
    assert bool(why_exact(choice, hidden_size)) is is_in_vain
    group = group_of(choice, torch.zeros(2, hidden_size), version=PROTOCOL_VERSION, bytes_per_s=None)
    assert (group == 0) is (is_in_vain or choice == "auto")


def test_rows_of_zeros_stay_so_and_what_is_not_finite_stays_so() -> None:
    states = torch.zeros(2, 16)
    assert torch.equal(unpacked(packed(states, 16), 2, 16, torch.float32), states)
    states[1, 3] = float("nan")
    assert not bool(torch.isfinite(unpacked(packed(states, 16), 2, 16, torch.float32)).all())


@pytest.mark.parametrize("n_bytes", [0, 19, 21, 3 * 20])
def test_lengths_that_are_no_rows_are_refused(n_bytes: int) -> None:
    with pytest.raises(ProtocolError, match=f"{n_bytes} bytes"):
        unpacked(bytes(n_bytes), 2, 16, torch.float32)


@pytest.mark.parametrize(
    ("choice", "states", "bytes_per_s", "version", "group"),
    [
        ("auto", CHUNK, SLOW, PROTOCOL_VERSION, 64),
        ("auto", CHUNK, SLOW, "1.1", 0),
        ("auto", CHUNK, 4 * SLOW, PROTOCOL_VERSION, 0),
        ("auto", CHUNK, None, PROTOCOL_VERSION, 0),
        ("auto", CHUNK.float(), 1.0, PROTOCOL_VERSION, 0),
        ("auto", CHUNK[: MAX_DRAFTS + 1], 1.0, PROTOCOL_VERSION, 0),
        ("exact", CHUNK, 1.0, PROTOCOL_VERSION, 0),
        ("int8", CHUNK.float()[:1], None, PROTOCOL_VERSION, 64),
        ("int8", CHUNK[:, :48], None, PROTOCOL_VERSION, 16),
        ("int8", CHUNK[:, :24], None, PROTOCOL_VERSION, 0),
        ("int8", CHUNK, None, "1.1", 0),
    ],
)
def test_only_a_slow_link_a_newer_peer_and_no_promise_make_it_int8(
    choice: WireChoice, states: torch.Tensor, bytes_per_s: float | None, version: str, group: int
) -> None:
    assert group_of(choice, states, version=version, bytes_per_s=bytes_per_s) == group
