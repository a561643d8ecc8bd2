from __future__ import annotations

import pytest
import torch

from protocol.errors import ProtocolError
from protocol.ids import SessionId
from protocol.messages import Step
from protocol.tensors import bytes_from_tensor
from worker.flow import chunks
from worker.step_inputs import MAX_INLINE_BYTES, ArrivedStep, payload_of, pieces_of

SESSION = SessionId("s")


def step(n_tokens: int, dtype: str = "float32", drafts: tuple[int, ...] = ()) -> Step:
    return Step(session_id=SESSION, position=5, n_tokens=n_tokens, dtype=dtype, is_last=True, drafts=drafts)  # type: ignore[arg-type]


@pytest.mark.parametrize("n_tokens", [3, MAX_INLINE_BYTES // 8], ids=["small", "in a thread"])
async def test_payloads_come_as_they_were_sent(n_tokens: int) -> None:
    states = torch.arange(4 * n_tokens, dtype=torch.float32).reshape(n_tokens, 4)
    dtype, data = bytes_from_tensor(states)
    assert torch.equal(await payload_of(ArrivedStep(step(n_tokens, dtype), data), is_head=False), states)
    ids = torch.arange(n_tokens, dtype=torch.int32)
    dtype, data = bytes_from_tensor(ids)
    assert torch.equal(await payload_of(ArrivedStep(step(n_tokens, dtype), data), is_head=True), ids)


async def test_a_payload_of_another_size_than_the_step_says_is_refused() -> None:
    with pytest.raises(ProtocolError):
        await payload_of(ArrivedStep(step(3), b"\0" * 25), is_head=False)


def test_pieces_are_the_step() -> None:
    pieces = list(pieces_of(step(10), torch.arange(10), chunks(5, 10, 4)))
    assert [piece.position for piece in pieces] == [5, 8, 11]
    assert torch.cat([piece.payload for piece in pieces]).tolist() == list(range(10))


def test_a_step_of_guesses_stays_one() -> None:
    (piece,) = pieces_of(step(3, drafts=(8, 9)), torch.ones(3, 4), [range(5, 8)])
    assert (piece.n_tokens, piece.drafts, piece.n_drafts) == (3, (8, 9), 2)
