"""Steps that carry hidden states, as the hop before sends them."""

from __future__ import annotations

import torch

from protocol.ids import SessionId
from protocol.messages import Step
from protocol.tensors import bytes_from_tensor

SESSION = SessionId("s")


def hidden_step(hidden: torch.Tensor, position: int = 0, *, is_last: bool = True) -> tuple[Step, bytes]:
    """The message and its bytes, for states (n_tokens, hidden_size) of `SESSION` from `position` on."""
    dtype, data = bytes_from_tensor(hidden)
    step = Step(
        session_id=SESSION,
        position=position,
        n_tokens=hidden.shape[0],
        dtype=dtype,  # type: ignore[arg-type]
        is_last=is_last,
    )
    return step, data
