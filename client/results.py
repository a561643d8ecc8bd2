"""What a generation gives: pieces while it runs, a summary at any time. Plain values; nothing here waits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from client.timings import GenerationClock, Timings
from protocol.ids import SessionId, WorkerId
from protocol.key_limits import RateLeft
from protocol.messages import FinishReason, KvPrecision, Precision, Quantization
from protocol.rest import RouteGrant
from protocol.tracing import begun_span


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPiece:
    """One token and the text that can be shown since it came; often empty, and never a broken character."""

    token_id: int
    text: str
    logprob: float | None = None
    """The natural logarithm of the token's probability, if it was asked for: of the model's own scores, before
    temperature, penalties, biases and constraints."""
    top_logprobs: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens for its place and the same of them, the likeliest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteStage:
    """A worker and the blocks [start, end) that it ran."""

    worker_id: WorkerId
    start: int
    end: int
    precision: Precision
    """What it computed in."""
    quantization: Quantization | None = None
    """What it held the weights in, if not in `precision`."""
    kv_precision: KvPrecision | None = None
    """What it kept keys and values in, if not in `precision`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A generation that is over, or as far as it came."""

    token_ids: tuple[int, ...]
    """All tokens that came, the stop token too."""
    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: FinishReason
    stop_string: str = ""
    """The stop string that it ended by, if it did."""
    ttft_s: float
    """Seconds from the call to the first token; 0 if none came."""
    tokens_per_s: float
    """After the first token; 0 if there are fewer than two."""
    route: tuple[RouteStage, ...]
    """The latest, after a failover; another worker may compute in another precision."""
    seed: int
    failovers: int = 0
    """How often a route failed and another was gone on with."""
    cached_tokens: int = 0
    """Tokens of the prompt that weren't run, as workers had them from an earlier generation."""
    drafted_tokens: int = 0
    """Tokens that the workers guessed, to be verified several at a time."""
    accepted_tokens: int = 0
    """Those of them that are tokens of the answer: so many rounds through all workers were saved."""
    private_blocks: int = 0
    """How many blocks at each end of the model were run by the client itself, so that no worker had a token."""
    timings: Timings | None = None
    """Where the time went; None of what no client made."""
    rates: tuple[RateLeft, ...] = ()
    """What was left of the key's limits when the latest route was given, this generation's own tokens taken off."""
    trace_id: str = ""
    """W3C's: stands in the logs of the coordinator and of every worker of the route."""


class Progress:
    """How far one generation is. Written by its driver, read by anybody at any time. Times are the loop's."""

    def __init__(self, started_at_s: float, on_notice: Callable[[str], None] | None = None) -> None:
        self._on_notice = on_notice
        self._started_at_s = started_at_s
        self.clock = GenerationClock(started_at_s)
        self.trace, self.cause = begun_span()
        """The generation as a span, and the span that it is part of."""
        self._first_at_s = started_at_s
        self._last_at_s = started_at_s
        self._texts: list[str] = []
        self.token_ids: list[int] = []
        self.n_prompt_tokens = 0
        self.seed = 0
        self.route: tuple[RouteStage, ...] = ()
        self.rates: tuple[RateLeft, ...] = ()
        self.finish_reason: FinishReason = "cancelled"
        """Until the end: nobody has finished it yet."""
        self.stop_string = ""
        self.n_failovers = 0
        self.n_cached = 0
        """Of the prompt, that the first route had already."""
        self.n_drafted = 0
        self.n_accepted = 0
        self.private_blocks = 0
        self.session_id: SessionId | None = None
        """The latest that a worker has heard of."""
        self.waits_for = ""
        """For people: why no token comes just now; empty while they come."""

    def tell(self, notice: str) -> None:
        """Say why no token comes just now; once, however often it is repeated."""
        if notice != self.waits_for:
            self.waits_for = notice
            if self._on_notice is not None:
                self._on_notice(notice)

    @property
    def standing(self) -> str:
        """For people: how far it is where no token comes any more."""
        if self.token_ids:
            return f"tokens that had come: {len(self.token_ids)}"
        if self.clock.is_opening:
            return "none of its workers has begun: they wait for room, or for one another; see `coord status`"
        return "its prompt was being run"

    def fail_over(self, notice: str) -> None:
        """Count a route that failed and is replaced."""
        self.n_failovers += 1
        self.tell(notice)

    def add(self, piece: TokenPiece, now_s: float) -> None:
        """Count a token."""
        if not self.token_ids:
            self._first_at_s = now_s
        self._last_at_s = now_s
        self.waits_for = ""
        self.token_ids.append(piece.token_id)
        self._texts.append(piece.text)

    def generation(self) -> Generation:
        """What there is by now."""
        n_tokens = len(self.token_ids)
        spent_s = self._last_at_s - self._first_at_s
        return Generation(
            token_ids=tuple(self.token_ids),
            text="".join(self._texts),
            prompt_tokens=self.n_prompt_tokens,
            completion_tokens=n_tokens,
            finish_reason=self.finish_reason,
            stop_string=self.stop_string,
            ttft_s=self._first_at_s - self._started_at_s,
            tokens_per_s=(n_tokens - 1) / spent_s if n_tokens > 1 and spent_s > 0 else 0.0,
            route=self.route,
            seed=self.seed,
            failovers=self.n_failovers,
            cached_tokens=self.n_cached,
            drafted_tokens=self.n_drafted,
            accepted_tokens=self.n_accepted,
            private_blocks=self.private_blocks,
            timings=self.clock.timings(),
            rates=self.rates,
            trace_id=self.trace.trace_id,
        )


def route_stages(grant: RouteGrant) -> tuple[RouteStage, ...]:
    """The workers of a route, and what each runs."""
    return tuple(
        RouteStage(
            worker_id=hop.worker_id,
            start=hop.blocks.start,
            end=hop.blocks.end,
            precision=hop.precision,
            quantization=hop.quantization,
            kv_precision=hop.kv_precision,
        )
        for hop in grant.hops
    )
