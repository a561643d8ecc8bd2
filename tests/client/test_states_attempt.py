from __future__ import annotations

import numpy as np
import pytest
import torch

from client.states_attempt import rows_of
from protocol.errors import ProtocolError
from protocol.ids import SessionId
from protocol.messages import Step
from protocol.tensors import bytes_from_tensor

STATES = torch.tensor([[1.5, -2.0, 0.1], [1e-8, 3e4, -0.0]])


def step(dtype: str, n_tokens: int = 2, **changes: object) -> Step:
    return Step(
        session_id=SessionId("s"),
        position=0,
        n_tokens=n_tokens,
        dtype=dtype,
        is_last=True,
        **changes,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_states_of_every_precision_are_torchs_values(dtype: str) -> None:
    states = STATES.to(getattr(torch, dtype))
    name, data = bytes_from_tensor(states)
    rows = rows_of(step(name), bytes(data), 3)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, states.float().numpy())


@pytest.mark.parametrize(
    ("sent", "data"),
    [
        (step("float32"), bytes(20)),
        (step("float32", 3), bytes(24)),
        (step("bfloat16"), bytes(24)),
        (step("float32", group=16), bytes(24)),
        (step("int32"), bytes(24)),
        (step("float32"), np.full(6, np.nan, dtype="<f4").tobytes()),
        (step("float16"), np.full(6, np.inf, dtype="<f2").tobytes()),
    ],
)
def test_what_cannot_be_the_states_is_refused(sent: Step, data: bytes) -> None:
    with pytest.raises(ProtocolError):
        rows_of(sent, data, 3)


def test_a_payload_of_half_a_number_is_refused() -> None:
    with pytest.raises(ProtocolError, match="21 bytes of float32 for 2 rows of 3"):
        rows_of(step("float32"), bytes(21), 3)
