"""How much the data plane takes at once, and how long it waits for those who say nothing."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.errors import OverloadedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Counts and seconds. Clients have connections of their own share, so that they can't crowd out workers."""

    client_connections: int = 512
    worker_connections: int = 512
    connections_per_worker: int = 4
    """A worker needs one; more for a moment, while one that broke is made again."""
    sessions: int = 1024
    sessions_per_connection: int = 256
    first_message_s: float = 10.0
    """Until a new connection's first message."""
    idle_session_s: float = 60.0
    """Without any step."""
    waiting_client_s: float = 30.0
    """A client at the tail, for its session to be opened there."""
    idle_peer_s: float = 60.0
    """A connection to another worker, without sessions."""
    idle_client_s: float = 300.0
    """A client's connection, without sessions: longer than it would keep it for its next generation."""
    sweep_s: float = 1.0
    """How often all that is looked at."""

    def check_room(self, n_sessions: int, n_on_connection: int) -> None:
        """Refuse one more where there is none.

        Raises:
            OverloadedError: as many are open as may be, in all or on the connection.
        """
        if n_sessions >= self.sessions or n_on_connection >= self.sessions_per_connection:
            raise OverloadedError(
                f"{n_on_connection} sessions on this connection and {n_sessions} in all; the limits are "
                f"{self.sessions_per_connection} and {self.sessions}: try again later"
            )
