"""Drive one generation: attempt after attempt, until it is over, by its deadline.

An attempt that fails is followed by another, with the tokens so far as the end of its prompt: the stream that the
caller sees has no gap and no repeat. What is worth another attempt is decided in `client.failover`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from msgspec import structs

from client.attempt import Attempt, CloseReason
from client.deadline import Deadline
from client.decoding import TextStream
from client.ends_process import EndsProcess
from client.failover import (
    AttemptFailed,
    Failover,
    after_failure,
    delay_s,
    final_error,
    notice_of,
)
from client.pace import Pace
from client.private_attempt import PrivateAttempt
from client.private_ends import PrivateEnds
from client.results import Progress, TokenPiece, route_stages
from client.route_finder import RouteFinder, WantedRoute
from client.showing import Shower
from client.transport import ConnectionPool
from protocol.errors import ConflictError, DeadlineExceededError, HopLostError
from protocol.ids import BlockRange, ModelName, Revision
from protocol.messages import Precision, SamplingParams, SharedPrefix, Token
from protocol.pinned_http import CoordinatorSession
from protocol.rest import STALLED, HopFailure, RouteGrant

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """What is to be generated, in the model's own terms."""

    model: ModelName
    revision: Revision
    """The revision that the prompt was encoded for."""
    vocab_size: int
    prompt: tuple[int, ...]
    sampling: SamplingParams
    stops: tuple[str, ...]
    speculate: bool = True
    prefix: SharedPrefix | None = None
    """What the prompt has in common with an earlier session."""
    between: BlockRange | None = None
    """Not None: no worker is to see a token; workers run these blocks, and this machine as many at each end."""
    waits_for_quota: bool = False
    waits_for_workers: bool = False
    min_trust: float = 0.0
    pinned_ends: bool = False


async def generated_pieces(
    request: GenerationRequest,
    *,
    coordinator: CoordinatorSession,
    pool: ConnectionPool,
    text: TextStream | None,
    progress: Progress,
    deadline: Deadline,
    ends: PrivateEnds | None = None,
) -> AsyncGenerator[TokenPiece, None]:
    """The tokens as they come; a private generation needs `ends`.

    Closing the generator, or cancelling it, ends the generation on all workers.
    """
    run = _Run(request, coordinator, pool, ends, progress, deadline)
    shower = Shower(text, request.stops)
    last: TokenPiece | None = None
    while last is None:
        reason: CloseReason | None = "failed"
        with await run.next_attempt() as attempt:
            try:
                await run.start(attempt)
                while last is None:
                    token = await run.token(attempt)
                    piece = shower.piece(token)
                    progress.add(piece, asyncio.get_running_loop().time())
                    finish_reason = "stop" if shower.is_stopped else token.finish_reason
                    if finish_reason is None:
                        yield piece
                        if token.is_outgrown:
                            reason = attempt.goodbye
                            break
                        continue
                    progress.finish_reason, progress.stop_string, last = finish_reason, shower.stop, piece
                    reason = attempt.goodbye
            except AttemptFailed as failed:
                run.go_on_after(failed, attempt)
            except DeadlineExceededError:
                reason = "deadline"
                raise
            except (asyncio.CancelledError, GeneratorExit):
                reason = "cancelled"
                raise
            finally:
                if reason is not None:
                    await attempt.end(reason)
    yield last


class _Run:
    """The attempts of one generation: which comes next, and how long each may take."""

    def __init__(
        self,
        request: GenerationRequest,
        coordinator: CoordinatorSession,
        pool: ConnectionPool,
        ends: PrivateEnds | None,
        progress: Progress,
        deadline: Deadline,
    ) -> None:
        self._request = request
        self._pool = pool
        self._ends = ends
        self._ends_precision: Precision | None = None
        """Of a private generation: the same for all its attempts, whatever precision their workers have."""
        self._progress = progress
        self._deadline = deadline
        self._rng = random.Random()  # noqa: S311 - spreads retries, hides nothing
        legs = partial(pool.legs, takes_states=request.between is not None)
        self._finder = RouteFinder(coordinator, self._rng, on_notice=progress.tell, trace=progress.trace, legs=legs)
        self._known = Failover()
        self._pace = Pace()
        self._n_prompt = len(request.prompt)
        """Tokens that are run as one text: the prompt, or all that there were when the text was to be run anew."""

    async def next_attempt(self) -> Attempt:
        """An attempt over a route that avoids what failed; waits for one while that helps."""
        self._progress.clock.enter("route", asyncio.get_running_loop().time())
        try:
            async with self._deadline.applied():
                await asyncio.sleep(delay_s(self._known, self._rng))
                grant = await self._finder.route(self._wanted(), self._known)
        except DeadlineExceededError as exc:
            waits_for = self._progress.waits_for
            raise DeadlineExceededError(f"{exc.message}; {waits_for}" if waits_for else exc.message) from exc
        if grant.revision != self._request.revision:
            raise ConflictError(
                f"the model {self._request.model} was replaced meanwhile by another revision: try again"
            )
        self._progress.route, self._progress.rates = route_stages(grant), grant.rates
        self._progress.clock.routed([(stage.worker_id, stage.start, stage.end) for stage in self._progress.route])
        attempt = await self._attempt(grant)
        attempt.on_opened = self._progress.clock.opened
        return attempt

    async def _attempt(self, grant: RouteGrant) -> Attempt:
        request, max_tokens = self._request, self._wanted().max_tokens
        if request.between is None:
            return Attempt(
                self._pool,
                grant,
                max_tokens=max_tokens,
                vocab_size=request.vocab_size,
                trace=self._progress.trace,
            )
        self._progress.private_blocks = request.between.start
        return PrivateAttempt(
            self._pool,
            grant,
            max_tokens=max_tokens,
            vocab_size=request.vocab_size,
            ends=await self._running_ends(request.between.start, grant.hops[0].precision),
            between=request.between,
            trace=self._progress.trace,
        )

    async def _running_ends(self, n_blocks_each: int, precision: Precision) -> EndsProcess:
        assert self._ends is not None, "who asks for a private generation gives what it needs"
        self._ends_precision = self._ends_precision or precision
        async with self._deadline.applied():
            return await self._ends.loaded(
                self._request.revision, n_blocks_each, self._ends_precision, self._progress.tell
            )

    async def start(self, attempt: Attempt) -> None:
        """Send the prompt and all tokens so far as the attempt's prompt."""
        now_s = asyncio.get_running_loop().time()
        remaining_s = self._deadline.at_s - now_s
        self._progress.clock.enter("open", now_s)
        so_far = self._progress.token_ids
        n_answered = len(so_far) if self._request.sampling.counts_answer else 0
        sampling = structs.replace(
            self._request.sampling, max_tokens=self._wanted().max_tokens, n_answered=n_answered
        )
        token_ids = (*self._request.prompt, *so_far)
        starting = attempt.start(token_ids, sampling, remaining_s=remaining_s, n_prompt=self._n_prompt)
        await self._limited(starting, attempt)
        self._progress.session_id = attempt.heard_session

    async def token(self, attempt: Attempt) -> Token:
        """The attempt's next token. AttemptFailed, with nobody to blame, if they have become many times slower."""
        self._check_pace(attempt)
        began_s = asyncio.get_running_loop().time()
        token = await self._limited(attempt.token(), attempt)
        if self._progress.n_failovers == 0 and self._n_prompt == len(self._request.prompt):
            self._progress.n_cached = attempt.n_cached
        self._progress.n_drafted += token.n_drafted
        self._progress.n_accepted += token.n_accepted
        now_s = asyncio.get_running_loop().time()
        self._progress.clock.took(token.timings, now_s)
        self._pace.add(now_s - began_s, is_first=attempt.n_tokens == 1)
        return self._outgrown(token, attempt) if token.is_outgrown else token

    def _outgrown(self, token: Token, attempt: Attempt) -> Token:
        """The last token of a session whose text is to be run anew, as one that isn't the answer's last."""
        is_anew = self._n_prompt > len(self._request.prompt)
        if is_anew or self._wanted().max_tokens == 1:  # who says so again ends the answer, as any tail can
            return structs.replace(token, is_outgrown=False)
        self._n_prompt = len(self._request.prompt) + len(self._progress.token_ids) + 1
        # waited for as after a failure, for the answer has begun; nobody is to blame
        self._known = replace(
            self._known,
            n_failed=self._known.n_failed + 1,
            continues=attempt.session_id,
            has_been_heard=True,
            failure=None,
            fruitless=(),
            n_stalls=0,
            retry_after_s=0.0,
        )
        self._progress.tell(
            f"the model computes longer texts otherwise: all {self._n_prompt} tokens so far are run anew"
        )
        return structs.replace(token, finish_reason=None)

    def _check_pace(self, attempt: Attempt) -> None:
        if attempt.n_tokens == 0 or (slowed := self._pace.slowed) is None:
            return
        self._pace = Pace()  # it is moved once: where it goes may be no faster
        message = (
            f"a token takes {slowed.now_s:.1f} s, and took {slowed.usual_s:.3f} s before: the route became slow"
        )
        raise AttemptFailed(HopLostError(message), HopFailure(code=STALLED), has_slowed=True)

    def go_on_after(self, failed: AttemptFailed, attempt: Attempt) -> None:
        """Remember what failed. Raises what ends the generation, if no other attempt is worth it."""
        self._known = after_failure(
            self._known,
            failed,
            session_id=attempt.session_id,
            has_been_heard=attempt.heard_session is not None,
            n_new_tokens=attempt.n_tokens,
            now_s=asyncio.get_running_loop().time(),
        )
        error = final_error(self._known, failed)
        if error is not None:
            raise error from failed
        self._progress.fail_over(notice_of(failed, len(self._progress.token_ids)))

    def _wanted(self) -> WantedRoute:
        n_tokens = len(self._progress.token_ids)
        return WantedRoute(
            model=self._request.model,
            n_prompt_tokens=len(self._request.prompt) + n_tokens,
            max_tokens=self._request.sampling.max_tokens - n_tokens,
            speculate=self._request.speculate and self._request.between is None,
            prefix=self._request.prefix,
            private_blocks=self._request.between.start if self._request.between is not None else None,
            waits_for_quota=self._request.waits_for_quota,
            waits_for_workers=self._request.waits_for_workers,
            min_trust=self._request.min_trust,
            pinned_ends=self._request.pinned_ends,
            newest_sampling=self._request.between is None and self._request.sampling.needs_newest,
        )

    async def _limited(self, work: Coroutine[Any, Any, T], attempt: Attempt) -> T:
        """Wait for one step of the attempt. AttemptFailed, with nobody to blame, if the route stands still."""
        limit_s = self._pace.limit_s(
            n_prompt_tokens=None if attempt.n_tokens > 0 else self._wanted().n_prompt_tokens,
            n_stalls=self._known.n_stalls,
        )
        now_s = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(min(now_s + limit_s, self._deadline.at_s)):
                return await work
        except TimeoutError as exc:
            if now_s + limit_s >= self._deadline.at_s:
                raise self._deadline.error(self._progress.standing) from exc
            error = HopLostError(f"no token came for {limit_s:.0f} s: the route stands still")
            raise AttemptFailed(error, HopFailure(code=STALLED)) from exc
