"""The end of a session that samples nothing: gives hidden states to the client, for they are what it wants.

Or, in a private session, for it has the last blocks, head and sampler itself.
"""

from __future__ import annotations

import asyncio

from protocol.errors import ConflictError, InvalidRequestError
from protocol.frames import MAX_CLIENT_PAYLOAD_BYTES
from protocol.ids import SessionId
from protocol.tickets import Ticket
from worker.connections import Connection
from worker.history import History
from worker.onward import Onward
from worker.tail import Attachment, Tail


class StatesTail:
    """What only the last hop of such a session does: to it the client is the next hop. Else: `worker.tail`."""

    finish_reason = None
    """Where an answer ends only the client knows."""

    def __init__(self, session_id: SessionId, *, is_private: bool) -> None:
        self.is_complete = False
        """Whether the whole prompt has been run."""
        self._is_private = is_private
        self.n_prompt_tokens = 0
        """Positions up to the first that the client wants a token after; until then, all that have come."""
        self.n_sent = 0
        """Tokens that the client of a private session could sample: one for each position since."""
        self._session_id = session_id
        self._attachment: Attachment | None = None
        self._attached = asyncio.Event()
        self._onward: Onward | None = None

    @property
    def client(self) -> Connection | None:
        """Where the hidden states go."""
        return self._attachment.connection if self._attachment is not None else None

    def attach(self, attachment: Attachment) -> None:
        """Take the client.

        Raises:
            ConflictError: there is one.
            InvalidRequestError: it tells token ids, which no worker of a private session is to know.
        """
        if self._attachment is not None:
            raise ConflictError("a client is attached to this session already")
        if attachment.prompt_token_ids:
            raise InvalidRequestError(
                f"{len(attachment.prompt_token_ids)} token ids for a session that gives hidden states: attach "
                "without, by its own ticket"
            )
        self._attachment = attachment
        self._attached.set()

    async def onward(self, history: History, n_positions: int, *, is_last: bool) -> Onward:
        """The way to the client, now that `n_positions` have been run; waits until it has attached.

        The caller holds the deadline. What is used is counted by positions, whatever the client calls last.
        """
        if self._onward is None:
            await self._attached.wait()
            assert self._attachment is not None
            self._onward = Onward(
                self._session_id, self._attachment.connection, history, most_bytes=MAX_CLIENT_PAYLOAD_BYTES
            )
        if self.n_sent > 0:
            self.n_sent = n_positions - self.n_prompt_tokens + 1
        else:
            self.n_prompt_tokens, self.n_sent = n_positions, int(is_last and self._is_private)
        self.is_complete |= is_last
        return self._onward


def tail_of(ticket: Ticket, anew_after: int | None = None) -> Tail | StatesTail | None:
    """What a last hop has besides; None anywhere else. `anew_after`: as `Tail` has it."""
    if ticket.next is not None:
        return None
    if ticket.gives_states:
        return StatesTail(ticket.session_id, is_private=ticket.is_private)
    return Tail(ticket.session_id, ticket.max_positions, anew_after)
