"""Drive one generation: route, attempt, text, stop strings, deadline.

What is around an `Attempt` is here, so that another attempt can follow one that failed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from client.attempt import Attempt, CloseReason
from client.decoding import TextStream
from client.results import Progress, RouteStage, TokenPiece
from client.stopping import cut
from client.transport import ConnectionPool
from protocol.errors import ConflictError, DeadlineExceededError, ProtocolError
from protocol.ids import ModelName, Revision
from protocol.messages import SamplingParams, Token
from protocol.pinned_http import CoordinatorSession
from protocol.rest import RouteGrant, RouteRequest


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline:
    """Until when a generation may take, on the loop's clock."""

    at_s: float
    timeout_s: float

    @asynccontextmanager
    async def applied(self) -> AsyncIterator[None]:
        """Limit a wait.

        Raises:
            DeadlineExceededError: it is over.
        """
        try:
            async with asyncio.timeout_at(self.at_s):
                yield
        except TimeoutError as exc:
            raise DeadlineExceededError(
                f"the generation took longer than its {self.timeout_s:g} s: give a longer --timeout or ask for less"
            ) from exc


async def generated_pieces(
    request: GenerationRequest,
    *,
    coordinator: CoordinatorSession,
    pool: ConnectionPool,
    text: TextStream | None,
    progress: Progress,
    deadline: Deadline,
) -> AsyncGenerator[TokenPiece, None]:
    """The tokens as they come. Closing the generator, or cancelling it, ends the generation on all workers."""
    async with deadline.applied():
        grant = await _granted_route(request, coordinator)
    progress.route = _stages(grant)
    shower = _Shower(text, request.stops)
    now_s = asyncio.get_running_loop().time
    reason: CloseReason | None = "failed"
    with Attempt(pool, grant, max_tokens=request.sampling.max_tokens) as attempt:
        try:
            async with deadline.applied():
                await attempt.start(request.prompt, request.sampling, remaining_s=deadline.at_s - now_s())
            while True:
                async with deadline.applied():
                    token = await attempt.token()
                piece = shower.piece(_checked(token, request))
                progress.add(piece, now_s())
                finish_reason = "stop" if shower.is_stopped else token.finish_reason
                if finish_reason is not None:
                    progress.finish_reason = finish_reason
                    reason = None if token.finish_reason is not None else "cancelled"
                    break
                yield piece
        except DeadlineExceededError:
            reason = "deadline"
            raise
        except (asyncio.CancelledError, GeneratorExit):
            reason = "cancelled"
            raise
        finally:
            if reason is not None:
                await attempt.end(reason)
    yield piece


class _Shower:
    """From tokens to what can be shown: whole characters, up to a stop string."""

    def __init__(self, text: TextStream | None, stops: tuple[str, ...]) -> None:
        self._text = text
        self._stops = stops
        self._held = ""
        self.is_stopped = False

    def piece(self, token: Token) -> TokenPiece:
        """The token's piece; the last token's has everything that was held back."""
        if self._text is None:
            return TokenPiece(token_id=token.token_id, text="")
        new = self._text.push(token.token_id)
        if token.finish_reason is not None:
            new += self._text.flush()
        found = cut(self._held + new, self._stops)
        self._held, self.is_stopped = found.held, found.is_stopped
        is_over = token.finish_reason is not None
        return TokenPiece(token_id=token.token_id, text=found.shown + found.held if is_over else found.shown)


async def _granted_route(request: GenerationRequest, coordinator: CoordinatorSession) -> RouteGrant:
    asked = RouteRequest(
        model=request.model, n_prompt_tokens=len(request.prompt), max_tokens=request.sampling.max_tokens
    )
    grant = await coordinator.post("/v1/routes", asked, RouteGrant)
    if grant.revision != request.revision:
        raise ConflictError(f"the model {request.model} was replaced meanwhile by another revision: try again")
    return grant


def _stages(grant: RouteGrant) -> tuple[RouteStage, ...]:
    return tuple(
        RouteStage(worker_id=hop.worker_id, start=hop.blocks.start, end=hop.blocks.end, precision=hop.precision)
        for hop in grant.hops
    )


def _checked(token: Token, request: GenerationRequest) -> Token:
    if not 0 <= token.token_id < request.vocab_size:
        raise ProtocolError(f"token id {token.token_id} is not one of the model's {request.vocab_size}")
    return token
