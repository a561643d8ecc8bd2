"""How far a client is from workers, as it says when it asks for a route."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from protocol.ids import WorkerId

MAX_CLIENT_LEGS = 32
"""Workers that a request can name: a client has tried few, and each makes the search a little longer."""
MAX_ROUND_TRIP_S = 60.0
"""A longer one is a mistake."""


class ClientLeg(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One worker that the client has been connected to. Since 1.2."""

    worker_id: WorkerId
    round_trip_s: float
    is_connected: bool = False
    """Whether it still is: a new connection takes three round trips more."""

    def __post_init__(self) -> None:
        """Refuse what is no time. ValueError: msgspec reports it as invalid."""
        if not 0.0 <= self.round_trip_s <= MAX_ROUND_TRIP_S:
            raise ValueError(f"round_trip_s is {self.round_trip_s}; it must be between 0 and {MAX_ROUND_TRIP_S:g}")


def check_client_legs(legs: Sequence[ClientLeg]) -> None:
    """ValueError if there are too many of them, or two to one worker."""
    if len(legs) > MAX_CLIENT_LEGS:
        raise ValueError(f"client_legs names {len(legs)} workers; at most {MAX_CLIENT_LEGS}")
    if len({leg.worker_id for leg in legs}) < len(legs):
        raise ValueError(f"client_legs names a worker twice among {len(legs)}; name each once")
