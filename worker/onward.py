"""The way to the next hop: hidden states out, as far as its credit goes, and only those that it hasn't got."""

from __future__ import annotations

import asyncio

import torch

from protocol.errors import ProtocolError
from protocol.hop_timings import HopTimings
from protocol.ids import SessionId
from protocol.messages import STEP_CREDIT, Step
from protocol.tensors import bytes_from_tensor
from worker.connections import Connection
from worker.flow import chunks
from worker.history import History
from worker.wire import group_of, packed

_ROWS_SENT_AGAIN = 256
"""Positions in one step of what was computed for another session."""


class Onward:
    """Sends one session's hidden states to the next hop, and keeps them.

    If the session goes on from another (`is_resumed`), nothing is sent before the next hop has said how much of
    that it has: one round trip, which may save megabytes.
    """

    def __init__(
        self,
        session_id: SessionId,
        connection: Connection,
        history: History,
        *,
        is_resumed: bool = False,
        most_bytes: int | None = None,
    ) -> None:
        """`most_bytes`: of one step, if the one behind the connection takes less than others do."""
        self.connection = connection
        self.timings: tuple[HopTimings, ...] = ()
        """What the next steps are to say of the hops so far."""
        self._most_bytes = most_bytes
        self._session_id = session_id
        self._history = history
        self._credit = STEP_CREDIT
        self._credit_came = asyncio.Event()
        self._n_there: asyncio.Future[int] | None = (
            asyncio.get_running_loop().create_future() if is_resumed else None
        )
        """Positions that the next hop has; None from the first step on, and if it can have none."""
        self._new_from: int | None = None
        """Where a text begins that no earlier session had."""

    def add_credit(self, n_steps: int) -> None:
        """The next hop has consumed steps.

        Raises:
            ProtocolError: more than were sent.
        """
        if self._credit + n_steps > STEP_CREDIT:
            raise ProtocolError(f"credit for {self._credit + n_steps} steps; {STEP_CREDIT} is all that there is")
        self._credit += n_steps
        self._credit_came.set()

    def opened(self, n_cached: int) -> None:
        """The next hop is open, and has so many positions from an earlier session."""
        if self._n_there is not None and not self._n_there.done():
            self._n_there.set_result(max(0, n_cached))

    def send_from(self, position: int) -> None:
        """Send everything from `position` on, whatever the next hop has: the text is another one."""
        self._new_from = position

    async def send(
        self, position: int, states: torch.Tensor, *, is_last: bool, drafts: tuple[int, ...] = ()
    ) -> None:
        """Hand on what was computed for the positions from `position` on, `drafts` at the end; waits for credit.

        What was kept from `position` on was of guesses that didn't hold. Before the first of them goes what is kept
        and the next hop hasn't got, and nothing that it has got, but always the prompt's last.

        Raises:
            HopLostError: the next hop is gone.
        """
        self._history.forget_states(position)
        self._history.add_states(states)
        if self._n_there is not None:
            end = self._history.n_states
            start = min(await self._first_missing(self._n_there), end - is_last)
            if start == end:
                return
            self._n_there = None
            if start < position:
                await self._send_again(start, position)
            states, position = states[max(0, start - position) :], max(start, position)
        await self._send(position, states, is_last=is_last, drafts=drafts)

    async def _first_missing(self, n_there: asyncio.Future[int]) -> int:
        start = await n_there
        return start if self._new_from is None else min(start, self._new_from)

    async def _send_again(self, start: int, end: int) -> None:
        for piece in chunks(start, end - start, _ROWS_SENT_AGAIN):
            await self._send(piece.start, self._history.states(piece.start, piece.stop), is_last=False)

    async def _send(
        self, position: int, states: torch.Tensor, *, is_last: bool, drafts: tuple[int, ...] = ()
    ) -> None:
        """In one step, or in as many as it takes: nobody guesses tokens for who takes less than that."""
        n_rows = states.shape[0]
        n_at_once = n_rows if self._most_bytes is None else max(1, self._most_bytes * n_rows // states.nbytes)
        if n_rows <= n_at_once:
            await self._send_step(position, states, is_last=is_last, drafts=drafts)
            return
        for piece in chunks(position, n_rows, n_at_once):
            part = states[piece.start - position : piece.stop - position]
            is_end = piece.stop == position + n_rows
            await self._send_step(piece.start, part, is_last=is_last and is_end, drafts=drafts)

    async def _send_step(
        self, position: int, states: torch.Tensor, *, is_last: bool, drafts: tuple[int, ...]
    ) -> None:
        while self._credit == 0:
            self._credit_came.clear()
            await self._credit_came.wait()
        self._credit -= 1
        wire, meter = self.connection.wire, self.connection.meter
        group = group_of(wire, states, version=self.connection.version, bytes_per_s=meter.bytes_per_s)
        dtype, data = bytes_from_tensor(states)
        step = Step(
            session_id=self._session_id,
            position=position,
            n_tokens=states.shape[0],
            dtype=dtype,  # type: ignore[arg-type]  # one of the four by tensors._NAMES
            is_last=is_last,
            drafts=drafts,
            group=group,
            timings=self.timings,
        )
        await self.connection.send(step, packed(states, group) if group else data)
