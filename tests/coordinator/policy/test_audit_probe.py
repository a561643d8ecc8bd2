from __future__ import annotations

import hashlib
import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coordinator.policy.audit_probe import N_SUMS, STEPS, Probe, projected, rows_of
from protocol.errors import ProtocolError
from protocol.ids import BlockRange, SessionId
from protocol.messages import Step
from protocol.tensors import bytes_from_tensor
from worker.wire import packed

PROBE = Probe(seed="a seed", blocks=BlockRange(1, 3), hidden_size=48, vocab_size=100)


def step(n_tokens: int, dtype: str, group: int = 0) -> Step:
    return Step(session_id=SessionId("s"), position=0, n_tokens=n_tokens, dtype=dtype, is_last=False, group=group)  # type: ignore[arg-type]


def test_the_same_numbers_come_out_everywhere() -> None:
    data = PROBE.states(0, 24) + bytes(PROBE.token_ids(0, 24))
    assert hashlib.sha256(data).hexdigest()[:16] == "314085814c062027"
    assert PROBE.states(3, 2) == PROBE.states(0, 24)[3 * 48 * 4 : 5 * 48 * 4]
    assert all(0 <= token_id < 100 for token_id in PROBE.token_ids(0, sum(STEPS)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_states_are_exact_in_every_precision(dtype: torch.dtype) -> None:
    states = torch.frombuffer(bytearray(PROBE.states(0, 6)), dtype=torch.float32)
    assert torch.equal(states.to(dtype).float(), states)
    assert 0.1 < float(states.std()) < 0.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_a_worker_sends_is_read_in_every_precision(dtype: torch.dtype) -> None:
    states = torch.randn(6, 48).to(dtype)
    name, data = bytes_from_tensor(states)
    assert torch.equal(torch.tensor(rows_of(step(6, name), data, 48)), states.float())
    read = torch.tensor(rows_of(step(6, name, 16), packed(states, 16), 48))
    assert float((read - states.float()).abs().max()) < 0.05


@pytest.mark.parametrize(
    ("n_bytes", "dtype", "group"), [(47, "float32", 0), (192, "int32", 0), (190, "bfloat16", 16)]
)
def test_what_is_no_row_is_refused(n_bytes: int, dtype: str, group: int) -> None:
    with pytest.raises(ProtocolError):
        rows_of(step(1, dtype, group), bytes(n_bytes), 48)


@given(seed=st.text(max_size=8), numbers=st.integers(0, 2**32))
def test_projections_are_linear_and_keep_lengths_on_the_average(seed: str, numbers: int) -> None:
    rng = random.Random(numbers)
    row = [rng.gauss(0.0, 1.0) for _ in range(400)]
    (one,), (double,) = projected(seed, [row]), projected(seed, [[2.0 * value for value in row]])
    assert len(one) == N_SUMS
    assert double == pytest.approx([2.0 * value for value in one])
    assert 0.3 < math.hypot(*one) / math.hypot(*row) < 2.5
