"""The end of the ring: waits for the client that attaches, decides when the answer is over, streams tokens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from protocol.errors import ConflictError, ProtocolError
from protocol.hop_timings import HopTimings
from protocol.ids import SessionId
from protocol.messages import SamplingParams, Token
from worker.connections import Connection
from worker.engine import Engine
from worker.grammars import Grammars
from worker.opening import n_tokens_allowed
from worker.steps import SampledToken, SpanKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A client that wants a session's tokens, and how to sample them."""

    connection: Connection
    sampling: SamplingParams
    prompt_token_ids: tuple[int, ...]
    came_at_s: float = field(default_factory=time.perf_counter)
    """By a clock that is finer than uvloop's, which counts milliseconds."""


class Tail:
    """What only the last hop of a session does."""

    def __init__(self, session_id: SessionId, max_positions: int, anew_after: int | None = None) -> None:
        """`anew_after`: the session's text may have so many positions; a longer one is to be run anew."""
        self.finish_reason: Literal["stop", "length"] | None = None
        self.is_outgrown = False
        """Whether that is why the session is over."""
        self.n_sent = 0
        self._session_id = session_id
        self._max_positions = max_positions
        self._anew_after = anew_after
        self._attachment: Attachment | None = None
        self._attached = asyncio.Event()
        self._has_sampler = False
        self._n_allowed = 0
        self._n_drafted = self._n_accepted = 0
        """Of the round whose tokens were taken last."""
        self._first_at_s = self._last_at_s = 0.0
        """When the first tokens and the latest ones were on their way."""
        self._n_first = 0

    @property
    def client(self) -> Connection | None:
        """Where the tokens go."""
        return self._attachment.connection if self._attachment is not None else None

    @property
    def n_prompt_tokens(self) -> int:
        """Tokens of the prompt as the client told; 0 until it has."""
        return len(self._attachment.prompt_token_ids) if self._attachment is not None else 0

    @property
    def pace(self) -> tuple[float | None, float | None]:
        """Seconds from the client's coming to its first token, and of each later token, on average."""
        if self._attachment is None or not self.n_sent:
            return None, None
        n_later = self.n_sent - self._n_first
        s_per_token = (self._last_at_s - self._first_at_s) / n_later if n_later else None
        return self._first_at_s - self._attachment.came_at_s, s_per_token

    def attach(self, attachment: Attachment) -> None:
        """Take the client.

        Raises:
            ConflictError: there is one.
            ContextExceededError: its prompt leaves no room for an answer.
            InvalidRequestError: it has no prompt.
        """
        if self._attachment is not None:
            raise ConflictError("a client is attached to this session already")
        n_prompt = len(attachment.prompt_token_ids)
        self._n_allowed = n_tokens_allowed(attachment.sampling, n_prompt, self._max_positions)
        self._attachment = attachment
        self._attached.set()

    async def prepare(self, engine: Engine, grammars: Grammars, span: SpanKey) -> None:
        """Return when the engine can sample here; waits for the client. The caller holds the deadline.

        Raises:
            InvalidRequestError: the constraint can't be used, or a token isn't the model's.
            OverloadedError: too many constraints are being compiled.
        """
        if self._has_sampler:
            return
        await self._attached.wait()
        assert self._attachment is not None
        sampling, prompt = self._attachment.sampling, self._attachment.prompt_token_ids
        tokenizer = next((loaded.tokenizer for loaded in engine.loaded() if loaded.key == span), None)
        grammar = await grammars.of(sampling, prompt, tokenizer)
        await engine.attach_sampler(self._session_id, sampling, prompt, grammar)
        self._has_sampler = True

    def take(self, tokens: Sequence[SampledToken], drafts: Sequence[int]) -> Sequence[SampledToken]:
        """Note the tokens of a step with guesses; those that the answer has room for. Then `stream` them.

        The last one given ends the answer if `finish_reason` is set afterwards.

        Raises:
            ProtocolError: their position isn't that which follows the prompt and the tokens so far.
        """
        expected = self.n_prompt_tokens + self.n_sent
        if tokens[0].position != expected:
            raise ProtocolError(
                f"a token for position {tokens[0].position}, but the prompt given to the tail and the "
                f"{self.n_sent} tokens since end at {expected}: give head and tail the same prompt"
            )
        if self._is_beyond(expected):
            raise ProtocolError(
                f"a token for position {expected} of a text that is run anew after {self._anew_after}: "
                "its prompt is to be all of it then (n_prompt)"
            )
        kept = [one for one in tokens[: self._n_allowed - self.n_sent] if not self._is_beyond(one.position)]
        self._n_drafted = len(drafts)
        self._n_accepted = sum(token.token_id == guess for token, guess in zip(kept, drafts, strict=False))
        if kept[-1].is_stop:  # the engine samples nothing behind one
            self.finish_reason = "stop"
        elif self.n_sent + len(kept) == self._n_allowed:
            self.finish_reason = "length"
        elif self._is_beyond(kept[-1].position + 1):
            self.finish_reason, self.is_outgrown = "length", True
        return kept

    def _is_beyond(self, position: int) -> bool:
        """Whether a token there follows one that this session can't run."""
        return self._anew_after is not None and position > self._anew_after

    def stream(self, tokens: Sequence[SampledToken], timings: tuple[HopTimings, ...] = ()) -> None:
        """Queue what `take` gave for the client, one message a token; the last says what the hops took.

        Raises:
            OverloadedError: the client reads too slowly.
        """
        assert self.client is not None
        self._last_at_s = time.perf_counter()
        if not self.n_sent:
            self._first_at_s, self._n_first = self._last_at_s, len(tokens)
        for token in tokens:
            message = Token(
                session_id=self._session_id,
                index=self.n_sent,
                token_id=token.token_id,
                finish_reason=self.finish_reason if token is tokens[-1] else None,
                n_drafted=self._n_drafted if token is tokens[0] else 0,
                n_accepted=self._n_accepted if token is tokens[0] else 0,
                logprob=token.logprob,
                top_logprobs=token.top_logprobs,
                timings=timings if token is tokens[-1] else (),
                is_outgrown=self.is_outgrown and token is tokens[-1],
            )
            self.n_sent += 1
            self.client.post(message)
