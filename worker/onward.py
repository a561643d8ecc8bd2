"""The way to the next hop: hidden states out, as far as its credit goes, and once more if that hop is a new one."""

from __future__ import annotations

import asyncio

import torch

from protocol.errors import ProtocolError
from protocol.ids import SessionId
from protocol.messages import STEP_CREDIT, Step
from protocol.tensors import bytes_from_tensor
from worker.connections import Connection
from worker.history import History


class Onward:
    """Sends one session's hidden states to the next hop, and keeps them."""

    def __init__(self, session_id: SessionId, connection: Connection, history: History) -> None:
        self.connection = connection
        self._session_id = session_id
        self._history = history
        self._credit = STEP_CREDIT
        self._credit_came = asyncio.Event()

    def add_credit(self, n_steps: int) -> None:
        """The next hop has consumed steps.

        Raises:
            ProtocolError: more than were sent.
        """
        if self._credit + n_steps > STEP_CREDIT:
            raise ProtocolError(f"credit for {self._credit + n_steps} steps; {STEP_CREDIT} is all that there is")
        self._credit += n_steps
        self._credit_came.set()

    async def send(self, position: int, states: torch.Tensor, *, is_last: bool) -> None:
        """Hand on what was computed for the positions from `position` on; waits for credit.

        Raises:
            HopLostError: the next hop is gone.
        """
        self._history.add_states(states)
        await self._send(position, states, is_last=is_last)

    async def send_again(self, position: int, n_tokens: int) -> None:
        """Hand on what was computed for an earlier session with the same text. Likewise."""
        await self._send(position, self._history.states(position, position + n_tokens), is_last=False)

    async def _send(self, position: int, states: torch.Tensor, *, is_last: bool) -> None:
        while self._credit == 0:
            self._credit_came.clear()
            await self._credit_came.wait()
        self._credit -= 1
        dtype, data = bytes_from_tensor(states)
        step = Step(
            session_id=self._session_id,
            position=position,
            n_tokens=states.shape[0],
            dtype=dtype,  # type: ignore[arg-type]  # one of the four by tensors._NAMES
            is_last=is_last,
        )
        await self.connection.send(step, data)
