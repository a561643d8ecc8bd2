"""What a key may ask for: looked at before a route is, and held in the database once there is one."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from msgspec import structs

from coordinator.generation_rows import RatesLeft
from coordinator.policy.never_allowed import check_allowed, less_words
from coordinator.policy.quota import Wanted, refused_again
from coordinator.policy.state import ModelRecord
from coordinator.repository import Repository
from coordinator.stored_rows import NewGeneration
from protocol.background import uninterrupted
from protocol.coordinator_errors import DatabaseAwayError, LeaseError
from protocol.errors import (
    BrigadeError,
    ContextExceededError,
    InternalError,
    OverloadedError,
    QuotaExceededError,
    StorageError,
)
from protocol.ids import KeyId
from protocol.key_limits import KeyLimits, RateLeft
from protocol.rest import RouteGrant, RouteRequest

log = structlog.get_logger(__name__)

RETRY_AWAY_S = 2.0
RETRY_FULL_S = 2.0
MAX_TOGETHER = 64
"""Generations of one transaction."""
MAX_LINE = 256
"""Generations that wait to be written."""
MAX_REFUSED = 1024
REMEMBERED_S = 1.0
"""A refusal is remembered so long: a key at its limit costs the database a look a second, not one a request."""
LONGEST_IN_LINE_S = 10.0
"""Who stood in line for longer isn't written: clients give up 15 s after they were to have a route."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Waiting:
    """A generation to be written, and what came of it: what is left of the key's rates, or why it isn't to be."""

    new: NewGeneration
    written: asyncio.Future[Exception | tuple[RateLeft, ...]]
    until_s: float
    is_gone: Callable[[], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refused:
    """What a key couldn't have. Until then it can't have more either, unless a generation of it ends."""

    n_tokens: int
    at_s: float
    until_s: float
    error: QuotaExceededError


class QuotaDesk:
    """Says no, or keeps what was granted. `quota_clock`: a `SteadyClock` over `clock`."""

    def __init__(
        self, repository: Repository, clock: Callable[[], float], quota_clock: Callable[[], float]
    ) -> None:
        self._repository = repository
        self._clock = clock
        self._quota_clock = quota_clock
        self._line: list[_Waiting] = []
        self._refused: OrderedDict[KeyId, _Refused] = OrderedDict()
        self._turn = asyncio.Lock()

    def allowed(self, model: ModelRecord, wanted: RouteRequest, limits: KeyLimits) -> RouteRequest:
        """The request as the key may ask it: the key's floor of trust is the least, pinned ends are the most.

        Raises:
            ContextExceededError: prompt and answer don't fit the model, or the key.
            ForbiddenError, OverLimitError: the key never may.
        """
        _check_context(model, wanted)
        check_allowed(limits, model.name, _most(wanted))
        floor = max(wanted.min_trust, limits.min_trust or 0.0)
        pinned_ends = wanted.pinned_ends or limits.pinned_ends or model.pinned_ends
        if (floor, pinned_ends) == (wanted.min_trust, wanted.pinned_ends):
            return wanted
        return structs.replace(wanted, min_trust=floor, pinned_ends=pinned_ends)

    def check_room(self, wanted: RouteRequest, key_id: KeyId) -> None:
        """Refuse again what was refused a moment ago, before anything is looked for.

        Raises:
            QuotaExceededError: a limit of the key doesn't allow it.
        """
        refused = self._refused.get(key_id)
        if refused is None or _most(wanted).n_tokens < refused.n_tokens:
            return
        now_s = self._quota_clock()
        if now_s >= min(refused.until_s, refused.at_s + REMEMBERED_S):
            del self._refused[key_id]
            return
        raise refused_again(refused.error, refused.until_s - now_s)

    def forget_refusal(self, key_id: KeyId) -> None:
        """The key may have room again: a generation of it is over, or its limits were changed."""
        self._refused.pop(key_id, None)

    async def record(
        self,
        grant: RouteGrant,
        wanted: RouteRequest,
        key_id: KeyId,
        *,
        is_opening_told: bool = False,
        is_gone: Callable[[], bool],
    ) -> RouteGrant:
        """Keep that the route was given, and hold what it may use, both or neither; it says what is left then.

        Those who come while others are being written are written together after them, but for those whose callers
        have hung up by then. `is_opening_told` as in `NewGeneration`.

        Raises:
            QuotaExceededError, OverLimitError: a limit of the key doesn't allow it.
            DatabaseAwayError: it can't be kept, so the route must not be given.
            OverloadedError: too many wait, or it waited for too long.
            ConnectionError: the caller hung up: nobody is there to be answered.
        """
        if len(self._line) >= MAX_LINE:
            message = f"{MAX_LINE} generations wait to be written down already; ask again"
            raise OverloadedError(message, retry_after_s=RETRY_FULL_S)
        waiting = _Waiting(
            new=self._new(grant, wanted, key_id, is_opening_told=is_opening_told),
            written=asyncio.Future(),
            until_s=asyncio.get_running_loop().time() + LONGEST_IN_LINE_S,
            is_gone=is_gone,
        )
        self._line.append(waiting)
        try:
            with self._repository.route_comes():
                await self._written(waiting)
        finally:
            if waiting in self._line:  # cancelled before its turn
                self._line.remove(waiting)
        outcome = waiting.written.result()
        if isinstance(outcome, Exception):
            raise outcome
        return structs.replace(grant, rates=outcome)

    async def _written(self, waiting: _Waiting) -> None:
        """Write those in line until this one is."""
        async with self._turn:
            if not waiting.written.done():
                await asyncio.sleep(0)  # whose requests came at the same moment are written together
            while not waiting.written.done() and self._line:
                await uninterrupted(self._write())

    def _next_together(self) -> list[_Waiting]:
        """Those at the head of the line who are to be written; who waited in vain before them is sent away."""
        together: list[_Waiting] = []
        now_s = asyncio.get_running_loop().time()
        while self._line and len(together) < MAX_TOGETHER:
            waiting = self._line.pop(0)
            if waiting.is_gone():
                waiting.written.set_result(ConnectionError("the caller hung up"))
            elif now_s > waiting.until_s:
                message = f"this generation stood in line for over {LONGEST_IN_LINE_S:g} s to be written; ask again"
                waiting.written.set_result(OverloadedError(message, retry_after_s=RETRY_FULL_S))
            else:
                together.append(waiting)
        return together

    async def _write(self) -> None:
        """Write those who stand at the head of the line once it can be written."""
        refusals: Sequence[BrigadeError | None]
        left: RatesLeft = {}
        together: list[_Waiting] = []

        def due() -> list[NewGeneration]:
            together.extend(self._next_together())
            return [waiting.new for waiting in together]

        try:
            refusals = await self._repository.record_due(due, self._quota_clock, left)
        except StorageError as error:
            refusals = [database_away(error) for _ in together or due()]
        except Exception:
            log.exception("generations_not_recorded", n_generations=len(together))
            message = "the generation couldn't be recorded; the coordinator's log has the details"
            refusals = [InternalError(message) for _ in together or due()]
        for waiting, refusal in zip(together, refusals, strict=True):
            if isinstance(refusal, QuotaExceededError):
                self._remember(waiting.new, refusal)
            waiting.written.set_result(refusal or left.get(waiting.new.session_id, ()))

    def _remember(self, new: NewGeneration, error: QuotaExceededError) -> None:
        now_s = self._quota_clock()
        n_tokens = new.n_prompt_tokens + new.max_tokens
        known = self._refused.get(new.key_id)
        if known is None or n_tokens <= known.n_tokens:
            until_s = now_s + (error.retry_after_s or 0.0)
            self._refused[new.key_id] = _Refused(n_tokens=n_tokens, at_s=now_s, until_s=until_s, error=error)
            if len(self._refused) > MAX_REFUSED:
                self._refused.popitem(last=False)

    def _new(
        self, grant: RouteGrant, wanted: RouteRequest, key_id: KeyId, *, is_opening_told: bool
    ) -> NewGeneration:
        return NewGeneration(
            session_id=grant.session_id,
            key_id=key_id,
            model=grant.model,
            revision=grant.revision,
            route=tuple((hop.worker_id, hop.blocks.start, hop.blocks.end) for hop in grant.hops),
            n_prompt_tokens=wanted.n_prompt_tokens,
            max_tokens=wanted.max_tokens,
            at=datetime.fromtimestamp(self._clock(), UTC),
            continues=wanted.continues,
            replaces=None if wanted.failure is None else wanted.failure.session_id,
            is_opening_told=is_opening_told,
        )


def database_away(error: StorageError) -> StorageError:
    """What is answered to who wants a route, when that can't be looked up or kept."""
    if isinstance(error, LeaseError | DatabaseAwayError):
        return error
    message = f"no generation can begin, as nothing can be kept of it: {error.message}"
    return DatabaseAwayError(message, retry_after_s=RETRY_AWAY_S)


def _check_context(model: ModelRecord, wanted: RouteRequest) -> None:
    context_length, n_wanted = model.manifest.context_length, _most(wanted).n_tokens
    if n_wanted > context_length:
        raise ContextExceededError(
            f"the prompt's {wanted.n_prompt_tokens} tokens and max_tokens {wanted.max_tokens} are {n_wanted} "
            f"together; {model.name} takes {context_length}: {less_words(context_length, wanted.n_prompt_tokens)}"
        )


def _most(wanted: RouteRequest) -> Wanted:
    return Wanted(n_prompt_tokens=wanted.n_prompt_tokens, max_tokens=wanted.max_tokens)
