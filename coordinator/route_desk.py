"""Routes for generations: found, waited for, signed, recorded. Owner of the circuit breakers: asks and feeds them.

A generation that failed on one route goes on by another: the request names the session that it continues, and how
that one ended. One whose text begins as an earlier one's is drawn to the workers that ran that.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import structlog
from msgspec import structs

from coordinator.cluster import Cluster
from coordinator.earlier_sessions import EarlierSessions, doubted
from coordinator.earned_priority import EarnedPriority
from coordinator.policy import breakers as policy
from coordinator.policy.breakers import Breakers
from coordinator.policy.routing import Held, Route
from coordinator.policy.signing import why_unserved
from coordinator.policy.state import ModelRecord
from coordinator.quota_desk import QuotaDesk
from coordinator.repository import Repository
from coordinator.route_search import RouteSearch
from coordinator.session_ends import SessionEnds
from coordinator.stored_rows import StoredGeneration
from coordinator.ticket_desk import TICKET_LIFE_S, SessionTerms, TicketDesk
from coordinator.trust_reports import SUCCESSES, TrustReports
from coordinator.waiting_room import Asker, Place, WaitingRoom
from protocol.control_messages import SessionsBegun
from protocol.errors import (
    ForbiddenError,
    InvalidRequestError,
    ModelLoadingError,
    ModelUnavailableError,
)
from protocol.ids import KeyId, SessionId, WorkerId
from protocol.key_limits import KeyLimits
from protocol.rest import HopFailure, RouteGrant, RouteRequest
from protocol.tickets import Returned

log = structlog.get_logger(__name__)

MAX_EXCLUDED = 1000


class RouteDesk:
    """Gives routes out. `is_gone` of a request says whether its caller has hung up."""

    def __init__(
        self,
        cluster: Cluster,
        repository: Repository,
        tickets: TicketDesk,
        trust: TrustReports,
        quotas: QuotaDesk,
        ends: SessionEnds,
        earned: EarnedPriority,
        clock: Callable[[], float],
    ) -> None:
        self._cluster = cluster
        self._earlier = EarlierSessions(cluster, repository, clock)
        self._tickets = tickets
        self._trust = trust
        self._quotas = quotas
        self._ends = ends
        self._earned = earned
        self._clock = clock
        self._waiting = WaitingRoom()
        self._breakers = Breakers()
        self._search = RouteSearch(cluster, tickets)

    async def grant(
        self,
        model: ModelRecord,
        wanted: RouteRequest,
        key_id: KeyId,
        limits: KeyLimits,
        *,
        is_gone: Callable[[], bool],
    ) -> RouteGrant:
        """A route that is recorded; there may be a wait for one of up to `wanted.wait_s`.

        Raises:
            ContextExceededError: prompt and answer don't fit the model, or the key.
            ForbiddenError, OverLimitError: the key never may, or nobody may since the model must be signed.
            KeyRevokedError: the key was revoked meanwhile.
            QuotaExceededError: the key may not now; says when.
            NotFoundError: this key has no session as the one that is to be continued.
            ModelUnavailableError: no route (ModelLoadingError: but there will be one).
            OverloadedError: too many wait for one, or to be recorded.
            DatabaseAwayError: it couldn't be recorded.
        """
        if len(wanted.exclude) > MAX_EXCLUDED:
            raise InvalidRequestError(f"{len(wanted.exclude)} workers excluded; at most {MAX_EXCLUDED}")
        if why := why_unserved(self._cluster.state, model):
            raise ForbiddenError(why)
        wanted = self._quotas.allowed(model, wanted, limits)
        continued = failed = None
        if wanted.continues is not None:
            continued = await self._earlier.continued(wanted.continues, key_id)
            failed = await self._earlier.failed(continued, wanted.failure, key_id)
            if failed is None:
                wanted = structs.replace(wanted, failure=None)
            self._take_failure(failed, wanted.failure)
        else:
            self._quotas.check_room(wanted, key_id)
        held = await self._earlier.held(model, wanted, key_id)
        asker = Asker(key_id, self._earned.of(key_id, limits.priority))
        grant = await self._awaited(model, wanted, asker, failed, held, is_gone)
        is_opening_told = self._tickets.can_be_told(SessionsBegun, grant.hops[0].worker_id)
        grant = await self._quotas.record(grant, wanted, key_id, is_opening_told=is_opening_told, is_gone=is_gone)
        self._ends.check_not_revoked(key_id)
        for ended in {one.session_id: one for one in (continued, failed) if one is not None}.values():
            self._ends.end_continued(ended)
        self._breakers = policy.tried(self._breakers, [hop.worker_id for hop in grant.hops], _now_s())
        return grant

    def take_finished(self, generation: StoredGeneration) -> None:
        """A generation is over, with the outcome that its tail reported."""
        route, outcome = [worker_id for worker_id, _, _ in generation.route], generation.outcome or ""
        self._quotas.forget_refusal(generation.key_id)
        self._trust.take_finished(generation.key_id, route, outcome)
        if outcome in SUCCESSES:
            self._breakers = policy.succeeded(self._breakers, route)

    def note(self, worker_id: WorkerId) -> str:
        """Why routes go round a worker now; empty if they don't."""
        return self.notes()(worker_id)

    def notes(self) -> Callable[[WorkerId], str]:
        """The same of any worker, as it is now: for who asks of many, in a thread too."""
        return partial(policy.note, self._breakers, now_s=_now_s())

    @property
    def n_waiting(self) -> int:
        """Requests that wait for a route."""
        return len(self._waiting)

    def stop(self) -> None:
        """Send away those who wait."""
        self._waiting.stop()

    # -------------------------------------------------------------- what failed before

    def _take_failure(self, session: StoredGeneration | None, failure: HopFailure | None) -> None:
        if session is None or failure is None:
            return
        log.info(
            "session_failed",
            session_id=session.session_id,
            worker_id=(failure.worker_id or "")[:64],
            noticed_by=(failure.noticed_by or "")[:64],
            error_code=failure.code[:64],
        )
        route = [worker_id for worker_id, _, _ in session.route]
        self._trust.take_failure(session.session_id, session.key_id, route, failure)
        self._breakers = policy.failed(
            self._breakers,
            session_id=session.session_id,
            route=route,
            worker_id=failure.worker_id,
            noticed_by=failure.noticed_by,
            code=failure.code,
            now_s=_now_s(),
        )

    # -------------------------------------------------------------- the way

    async def _awaited(
        self,
        model: ModelRecord,
        wanted: RouteRequest,
        asker: Asker,
        failed: StoredGeneration | None,
        held: Held,
        is_gone: Callable[[], bool],
    ) -> RouteGrant:
        deadline_s = _now_s() + wanted.wait_s
        place: Place | None = None
        was_coming = False

        def signed() -> RouteGrant:
            silent = self._earlier.silent(failed, wanted.failure)
            return self._signed(model, wanted, asker, silent, doubted(failed, wanted.failure), held)

        with ExitStack() as stack:
            while True:
                changed = self._cluster.routes_changed
                try:
                    return signed()
                except ModelUnavailableError as error:
                    is_coming, rest_s = isinstance(error, ModelLoadingError), deadline_s - _now_s()
                    # who waited for what was on its way is told at once when it no longer is
                    if rest_s <= 0 or (was_coming and not is_coming):
                        raise
                    was_coming = is_coming
                place = place or stack.enter_context(self._waiting.place(asker))
                await self._waiting.change(place, changed, rest_s, is_gone=is_gone)

    def _signed(
        self,
        model: ModelRecord,
        wanted: RouteRequest,
        asker: Asker,
        silent: frozenset[WorkerId],
        doubted: frozenset[WorkerId],
        held: Held,
    ) -> RouteGrant:
        avoided = policy.avoided(self._breakers, _now_s())
        if doubted:
            avoided = replace(avoided, workers=avoided.workers | doubted)
        route = self._search.found(model, frozenset(wanted.exclude) | silent, avoided, held, wanted)
        terms = _terms(wanted, route, held, asker, self._clock())
        return RouteGrant(
            session_id=terms.session_id,
            model=route.model,
            revision=route.revision,
            hops=self._tickets.hops(route.hops, terms),
            attach_ticket=self._tickets.attach_ticket(route.hops, terms),
            expires_in_s=TICKET_LIFE_S,
        )


def _terms(wanted: RouteRequest, route: Route, held: Held, asker: Asker, now_s: float) -> SessionTerms:
    """Of a new session by this route."""
    holds_prefix = any((hop.worker_id, hop.blocks) in held for hop in route.hops)
    return SessionTerms(
        asker=asker,
        session_id=SessionId(secrets.token_hex(16)),
        model=route.model,
        revision=route.revision,
        max_positions=wanted.n_prompt_tokens + wanted.max_tokens,
        now_s=now_s,
        continues=wanted.continues,
        prefix=wanted.prefix if holds_prefix else None,
        speculate=wanted.speculate,
        is_private=wanted.private_blocks is not None,
        returned=_returned(wanted),
    )


def _returned(wanted: RouteRequest) -> Returned:
    if wanted.states_after is None:
        return "tokens"
    return "inputs" if wanted.states_after == 0 else "states"


def _now_s() -> float:
    """Of a clock that never steps: breakers and waits measure how long ago something was."""
    return asyncio.get_running_loop().time()
