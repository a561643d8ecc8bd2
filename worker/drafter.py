"""The draft model as the event loop sees it: asked for a session's next guesses, one after the other.

Each guess is a call of its own to the engine's thread, so that other sessions' steps come in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import structlog

from protocol.error_forms import error_fields
from protocol.errors import BrigadeError
from protocol.ids import SessionId
from worker.draft_model import DraftModelInfo, DraftModelRequest
from worker.engine_link import EngineLink
from worker.flow import chunks
from worker.speculation import ModelReach, Round, Rounds
from worker.steps import LoadedSpan, SpanKey

log = structlog.get_logger(__name__)

_CHUNK_TOKENS = 128
"""Of a text that the model reads first: others wait for so many at most."""


class Drafter:
    """The worker's draft model, if it has one."""

    def __init__(self, link: EngineLink) -> None:
        self._link = link
        self._model: DraftModelInfo | None = None

    async def load(self, request: DraftModelRequest) -> DraftModelInfo:
        """Load the model; before any span is.

        Raises:
            ConfigError: it can't be used; the message says why.
        """
        model: DraftModelInfo = await self._link.post(lambda core: core.load_draft_model(request))
        self._model = model
        log.info(
            "draft_model_loaded", name=model.name, n_bytes=model.n_bytes, guess_s=round(model.times.guess_s, 5)
        )
        return model

    def reach(self, loaded: Iterable[LoadedSpan], span: SpanKey, max_positions: int) -> ModelReach | None:
        """What it can do for a session on that one of the loaded spans; None if nothing."""
        drafting = next((one.drafting for one in loaded if one.key == span), None)
        if self._model is None or drafting is None or drafting.unfit_because:
            return None
        return ModelReach(times=self._model.times, max_positions=min(max_positions, self._model.max_positions))

    async def completed(
        self, turn: Round, rounds: Rounds, session_id: SessionId, token_ids: Sequence[int]
    ) -> Round:
        """The round with the guesses that it wants, behind all tokens so far; without them if the model fails."""
        if not turn.n_wanted:
            return turn
        drafts: tuple[int, ...] = ()
        try:
            drafts = await self._guesses(turn, session_id, token_ids, rounds.n_model_positions)
        except BrigadeError as exc:  # the session goes on by itself
            log.warning("draft_model_left_out", session_id=session_id, **error_fields(exc))
        return rounds.guessed(turn, drafts, asyncio.get_running_loop().time())

    async def _guesses(
        self, turn: Round, session_id: SessionId, token_ids: Sequence[int], n_positions: int
    ) -> tuple[int, ...]:
        guess = 0
        for piece in chunks(turn.read_from, len(token_ids) - turn.read_from, _CHUNK_TOKENS):
            read = tuple(token_ids[piece.start : piece.stop])
            guess = await self._next_token(session_id, piece.start, read, n_positions)
        drafts = [guess]
        while len(drafts) < turn.n_wanted:
            position = len(token_ids) + len(drafts) - 1
            drafts.append(await self._next_token(session_id, position, (drafts[-1],), n_positions))
        return tuple(drafts)

    async def _next_token(
        self, session_id: SessionId, position: int, token_ids: tuple[int, ...], n_positions: int
    ) -> int:
        token_id: int = await self._link.post(
            lambda core: core.next_draft(session_id, position, token_ids, n_positions)
        )
        return token_id
