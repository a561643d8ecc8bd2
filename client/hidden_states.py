"""The hidden states of a text: route after route is asked until one has given them all, by a deadline.

A text's states come whole from one route; one that fails is asked for again over others.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from client.attempt import CloseReason
from client.deadline import Deadline
from client.failover import AttemptFailed, Failover, after_failure, delay_s, final_error, notice_of
from client.pace import first_token_limit_s
from client.route_finder import RouteFinder, WantedRoute
from client.states_attempt import Rows, StatesAttempt
from client.transport import ConnectionPool
from protocol.errors import ConflictError, DeadlineExceededError, HopLostError
from protocol.ids import BlockRange, ModelName, Revision
from protocol.key_limits import RateLeft
from protocol.pinned_http import CoordinatorSession
from protocol.rest import STALLED, HopFailure, RouteGrant
from protocol.tracing import Trace, begun_span


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """Which workers may take part, and what to do where there is no room."""

    min_trust: float = 0.0
    pinned_ends: bool = False
    waits_for_quota: bool = False
    waits_for_workers: bool = False


ANY_WORKER = Routing()


@dataclass(frozen=True, slots=True, kw_only=True)
class StatesRequest:
    """Whose states are wanted, and after which block, in the model's own terms."""

    model: ModelName
    revision: Revision
    """The revision that the text was encoded for."""
    vocab_size: int
    hidden_size: int
    token_ids: tuple[int, ...]
    states_after: int
    """Blocks that have run; 0: none, the text is only embedded."""
    routing: Routing

    @property
    def blocks(self) -> BlockRange:
        """What a route has to cover: somebody has to embed the text even if no block is to run."""
        return BlockRange(0, max(1, self.states_after))


@dataclass(frozen=True, slots=True, eq=False)
class States:
    """What came, and how many routes failed before."""

    rows: Rows
    failovers: int
    rates: tuple[RateLeft, ...]
    """What was left of the key's limits when the route was given."""


class StatesFinder:
    """Asks one cluster; for any number of texts at once."""

    def __init__(
        self, coordinator: CoordinatorSession, pool: ConnectionPool, on_notice: Callable[[str], None]
    ) -> None:
        self._coordinator = coordinator
        self._pool = pool
        self._on_notice = on_notice
        self._rng = random.Random()  # noqa: S311 - spreads retries, hides nothing

    async def states(self, request: StatesRequest, deadline: Deadline) -> States:
        """The states of all positions of a text.

        Raises:
            DeadlineExceededError: it took longer.
            BrigadeError: the coordinator's, or the last worker's that failed, if another route doesn't help.
        """
        trace, _ = begun_span()
        legs = partial(self._pool.legs, takes_states=True)
        finder = RouteFinder(self._coordinator, self._rng, on_notice=self._on_notice, trace=trace, legs=legs)
        known = Failover()
        while True:
            async with deadline.applied():
                await asyncio.sleep(delay_s(known, self._rng))
                grant = await finder.route(_wanted(request), known)
            if grant.revision != request.revision:
                raise ConflictError(
                    f"the model {request.model} was replaced meanwhile by another revision: try again"
                )
            failed = await self._tried(request, grant, known, deadline, trace)
            if isinstance(failed, States):
                return failed
            known = failed

    async def _tried(
        self, request: StatesRequest, grant: RouteGrant, known: Failover, deadline: Deadline, trace: Trace
    ) -> States | Failover:
        """The states, or what is known after one more failure."""
        attempt = StatesAttempt(
            self._pool,
            grant,
            vocab_size=request.vocab_size,
            hidden_size=request.hidden_size,
            blocks=request.blocks,
            trace=trace,
        )
        reason: CloseReason = "failed"
        with attempt:
            try:
                rows = await _limited(attempt, request, known, deadline)
                reason = "finished"
                return States(rows, known.n_failed, grant.rates)
            except AttemptFailed as failed:
                after = after_failure(
                    known,
                    failed,
                    session_id=attempt.session_id,
                    has_been_heard=attempt.heard_session is not None,
                    n_new_tokens=0,
                    now_s=asyncio.get_running_loop().time(),
                )
                error = final_error(after, failed)
                if error is not None:
                    raise error from failed
                self._on_notice(notice_of(failed, 0))
                return after
            except DeadlineExceededError:
                reason = "deadline"
                raise
            except asyncio.CancelledError:
                reason = "cancelled"
                raise
            finally:
                await attempt.end(reason)


async def _limited(attempt: StatesAttempt, request: StatesRequest, known: Failover, deadline: Deadline) -> Rows:
    """Wait for the attempt. AttemptFailed, with nobody to blame, if the route stands still."""
    now_s = asyncio.get_running_loop().time()
    limit_s = first_token_limit_s(len(request.token_ids), known.n_stalls)
    try:
        async with asyncio.timeout_at(min(now_s + limit_s, deadline.at_s)):
            return await attempt.states(request.token_ids, remaining_s=deadline.at_s - now_s)
    except TimeoutError as exc:
        if now_s + limit_s >= deadline.at_s:
            raise deadline.error() from exc
        error = HopLostError(f"no hidden states came for {limit_s:.0f} s: the route stands still")
        raise AttemptFailed(error, HopFailure(code=STALLED)) from exc


def _wanted(request: StatesRequest) -> WantedRoute:
    return WantedRoute(
        model=request.model,
        n_prompt_tokens=len(request.token_ids),
        max_tokens=0,
        speculate=False,
        states_after=request.states_after,
        waits_for_quota=request.routing.waits_for_quota,
        waits_for_workers=request.routing.waits_for_workers,
        min_trust=request.routing.min_trust,
        pinned_ends=request.routing.pinned_ends,
    )
