"""What a piece of a prompt takes on one hop, by what that hop has measured: seconds, no clock's time."""

from __future__ import annotations

from typing import Annotated

import msgspec

from protocol.hop_timings import MAX_TIMED_HOPS

_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e6)]


class PromptCost(msgspec.Struct, frozen=True, array_like=True):
    """Seconds of n tokens from position p on: `base + per_token n + per_pair (n (p + n / 2) + r p)`, r a constant.

    Of the blocks that the route has run there. Since 1.2; more may follow at the end.
    """

    base: _Seconds
    per_token: _Seconds
    per_pair: _Seconds


RoutePromptCosts = Annotated[tuple[PromptCost, ...], msgspec.Meta(max_length=MAX_TIMED_HOPS)]
"""Of a hop and all later ones, in the order of the route."""
