"""What the uplink asks of its worker, and tells it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from protocol.control_messages import Announce, EndSessions, Heartbeat
from protocol.ids import SessionId
from worker.enrolment import Credentials


@dataclass(frozen=True, slots=True, kw_only=True)
class UplinkHooks:
    """The other side of an `Uplink`."""

    announce: Callable[[], Announce]
    heartbeat: Callable[[], Heartbeat]
    sessions_begun: Callable[[], frozenset[SessionId]]
    """Those that clients opened here, and that run."""
    renew: Callable[[], Awaitable[Credentials]]
    """Enrol again."""
    on_drain: Callable[[str], None]
    """The coordinator wants this worker to leave, for the reason given."""
    on_end_sessions: Callable[[EndSessions], None]
    tell: Callable[[str], None]
    """A line for people."""
