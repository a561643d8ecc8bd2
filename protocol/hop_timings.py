"""What a session has cost on one hop, as it goes round the ring: no clock is compared with another's."""

from __future__ import annotations

from typing import Annotated

import msgspec

MAX_TIMED_HOPS = 256
"""As many as a route can have."""
_Microseconds = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]


class HopTimings(msgspec.Struct, frozen=True, array_like=True):
    """Microseconds, all of the session so far. Since 1.2; more may follow at the end."""

    memory_us: _Microseconds
    """That it waited for key-value memory when it was opened."""
    queue_us: _Microseconds
    """In the engine's queue, and on the way to its thread and back."""
    compute_us: _Microseconds
    """In the forwards of the batches that its steps were in."""
    sampling_us: _Microseconds
    """At the tail, on choosing its tokens."""


RouteTimings = Annotated[tuple[HopTimings, ...], msgspec.Meta(max_length=MAX_TIMED_HOPS)]
"""Of the hops so far, in the order of the route."""
