"""Ask for a route until there is one or no hope of one: carries out what `client.failover` decides.

Knows nothing of workers or tokens; the caller has the deadline.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass

from client.failover import AskAgain, Asked, Failover, after_refusal
from protocol.client_legs import ClientLeg
from protocol.errors import BrigadeError, DrainingError, UnreachableError
from protocol.ids import ModelName
from protocol.messages import SharedPrefix
from protocol.pinned_http import CoordinatorSession
from protocol.rest import RouteGrant, RouteRequest
from protocol.tracing import Trace

_ANSWER_TIMEOUT_S = 15.0
"""Beyond the time that the coordinator was told to wait: a coordinator that hangs is as good as away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedRoute:
    """What the route is for."""

    model: ModelName
    n_prompt_tokens: int
    max_tokens: int
    speculate: bool = True
    """Whether workers may guess tokens ahead."""
    prefix: SharedPrefix | None = None
    """What the prompt has in common with an earlier session."""
    private_blocks: int | None = None
    """Not None: for a private generation, which runs so many blocks at each end of the model itself."""
    states_after: int | None = None
    """Not None: for hidden states, after so many blocks, which the route has to cover."""
    waits_for_quota: bool = False
    """Whether to wait where a limit of the key is used up."""
    waits_for_workers: bool = False
    """Whether to wait where no worker is to hold the model."""
    min_trust: float = 0.0
    """Only workers of this trust or more."""
    pinned_ends: bool = False
    """Whether the first and the last worker must be ones whose trust an operator pinned."""
    newest_sampling: bool = False
    """Whether the tail must know what 1.2 added to sampling."""


class RouteFinder:
    """Asks one coordinator, or whichever of several answers."""

    def __init__(
        self,
        coordinator: CoordinatorSession,
        rng: random.Random,
        *,
        on_notice: Callable[[str], None],
        trace: Trace | None = None,
        legs: Callable[[], tuple[ClientLeg, ...]] = tuple,
    ) -> None:
        """`trace`: what the route is for, as the coordinator's log is to name it. `legs`: how far workers are."""
        self._coordinator = coordinator
        self._trace = trace
        self._legs = legs
        self._rng = rng
        self._on_notice = on_notice

    async def route(self, wanted: WantedRoute, known: Failover) -> RouteGrant:
        """A route that avoids what failed, when there is one.

        Raises:
            BrigadeError: the coordinator's, if waiting doesn't help.
        """
        now_s = asyncio.get_running_loop().time
        began_s, n_refusals, wait_s, was_away = now_s(), 0, 0.0, False
        while True:
            sent_s = now_s()
            request = _request(wanted, known, wait_s, sent_s, self._legs())
            try:
                return await self._coordinator.post(
                    "/v1/routes",
                    request,
                    RouteGrant,
                    timeout_s=wait_s + _ANSWER_TIMEOUT_S,
                    needed=_needed(wanted),
                    trace=self._trace,
                )
            except BrigadeError as error:
                n_refusals += 1
                was_away = was_away or isinstance(error, UnreachableError | DrainingError)
                asked = Asked(
                    has_excluded=bool(request.exclude),
                    wait_s=wait_s,
                    n_refusals=n_refusals,
                    answered_after_s=now_s() - sent_s,
                    since_s=now_s() - began_s,
                    waits_for_quota=wanted.waits_for_quota,
                    waits_for_workers=wanted.waits_for_workers,
                    was_away=was_away,
                )
                again = after_refusal(known, error, asked, self._rng)
                if again is None:
                    raise
            known, wait_s = again.known, again.wait_s
            await self._waited(again)

    async def _waited(self, again: AskAgain) -> None:
        if again.waits_for is not None:
            self._on_notice(f"waiting: {again.waits_for}")
        await asyncio.sleep(again.after_s)


def _needed(wanted: WantedRoute) -> list[str]:
    """What an older coordinator must not pass over: it decides who sees the tokens, and who samples them."""
    asked = {
        "min_trust": wanted.min_trust > 0.0,
        "newest_sampling": wanted.newest_sampling,
        "pinned_ends": wanted.pinned_ends,
        "private_blocks": wanted.private_blocks is not None,
        "states_after": wanted.states_after is not None,
    }
    return [name for name, is_asked in asked.items() if is_asked]


def _request(
    wanted: WantedRoute, known: Failover, wait_s: float, now_s: float, legs: tuple[ClientLeg, ...]
) -> RouteRequest:
    return RouteRequest(
        model=wanted.model,
        n_prompt_tokens=wanted.n_prompt_tokens,
        max_tokens=wanted.max_tokens,
        exclude=known.excluded(now_s),
        continues=known.continues,
        failure=known.failure,
        wait_s=wait_s,
        speculate=wanted.speculate,
        prefix=wanted.prefix,
        min_trust=wanted.min_trust,
        pinned_ends=wanted.pinned_ends,
        private_blocks=wanted.private_blocks,
        states_after=wanted.states_after,
        newest_sampling=wanted.newest_sampling,
        client_legs=legs,
    )
