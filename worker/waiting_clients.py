"""Clients that attached to a session before it was opened here; each waits for it, with a deadline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from protocol.errors import ConflictError
from protocol.ids import SessionId
from worker.connections import Connection
from worker.tail import Attachment


@dataclass(frozen=True, slots=True)
class _WaitingClient:
    """A client, as its connection knows it."""

    attachment: Attachment
    until_s: float
    forget: Callable[[], Attachment]

    def connection_lost(self, _connection: Connection) -> None:
        """It waits no more."""
        self.forget()


class WaitingClients:
    """Attachments by session; one client a session."""

    def __init__(self) -> None:
        self._clients: dict[SessionId, _WaitingClient] = {}

    def __len__(self) -> int:
        """How many wait."""
        return len(self._clients)

    def add(self, session_id: SessionId, attachment: Attachment, until_s: float) -> None:
        """Let a client wait until `until_s`, on the loop's clock.

        Raises:
            ConflictError: another waits for this session.
            HopLostError: its connection is gone.
        """
        if session_id in self._clients:
            raise ConflictError("a client waits for this session already")
        waiting = _WaitingClient(attachment, until_s, partial(self._forget, session_id))
        attachment.connection.add_user(session_id, waiting)
        self._clients[session_id] = waiting

    def take(self, session_id: SessionId) -> Attachment | None:
        """The client that waits for this session, if one does; it waits no more."""
        return self._forget(session_id) if session_id in self._clients else None

    def leave(self, session_id: SessionId, connection: Connection) -> None:
        """A client gives up waiting; nothing happens if it isn't the one that waits."""
        waiting = self._clients.get(session_id)
        if waiting is not None and waiting.attachment.connection is connection:
            self._forget(session_id)

    def take_expired(self, now_s: float) -> list[tuple[SessionId, Attachment]]:
        """Those whose time is over; they wait no more."""
        expired = [session_id for session_id, waiting in self._clients.items() if now_s >= waiting.until_s]
        return [(session_id, self._forget(session_id)) for session_id in expired]

    def _forget(self, session_id: SessionId) -> Attachment:
        attachment = self._clients.pop(session_id).attachment
        attachment.connection.remove_user(session_id)
        return attachment
