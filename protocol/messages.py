"""Every message of the data plane, filed by receiver, and what the other planes share with it.

Frozen, tagged structs; the unions at the end are closed, so a `match` over them is checked for completeness.
Ranges and limits that can be said of a value alone are checked here, when it comes off the wire too.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from protocol.errors import ErrorBody
from protocol.hop_timings import RouteTimings
from protocol.ids import SessionId, WorkerId
from protocol.prompt_cost import RoutePromptCosts

PROTOCOL_VERSION = "1.2"
"""Major.minor. Sides of different majors refuse each other; what a minor may change: `protocol.compatibility`."""

STEP_CREDIT = 4
"""Step frames of one session that may be under way on one hop before the receiver has said `Credit`."""
MAX_STOP_TOKEN_IDS = 64
MAX_DRAFTS = 16
"""Guessed tokens in one step: with more than that a round on the slowest link is hardly worth more."""

MIN_TEMPERATURE = 1e-3
"""Below it logits overflow float32, and sampling is greedy in all but name."""
MAX_PENALTY = 2.0
MAX_BIAS = 100.0
MAX_BIASES = 1024
MAX_LOGPROBS = 20
MAX_CONSTRAINT_BYTES = 64 * 1024

ConstraintKind = Literal["json_schema", "regex", "lark"]
FinishReason = Literal["stop", "length", "cancelled"]
Precision = Literal["float32", "bfloat16", "float16"]
Quantization = Literal["int8", "int4"]
WeightFormat = Literal["float32", "bfloat16", "float16", "int8", "int4"]
"""What weights are held in: a precision, or codes of fewer bits."""
KvPrecision = Literal["float32", "bfloat16", "float16", "int8"]
"""What keys and values are kept in; int8: codes, with a scale for each few."""
QUANTISED_PRECISION: Precision = "bfloat16"
"""What is computed in where weights are held in fewer bits: the kernels have no other fast one."""


class Constraint(msgspec.Struct, frozen=True, kw_only=True):
    """What the whole answer has to be an instance of. Since 1.2."""

    kind: ConstraintKind
    text: str
    """A schema as JSON, a regular expression without look-around, or a grammar in llguidance's form of Lark."""

    def __post_init__(self) -> None:
        """Refuse what nobody compiles. ValueError: msgspec reports it as invalid."""
        n_bytes = len(self.text.encode("utf-8", errors="surrogatepass"))
        if not 1 <= n_bytes <= MAX_CONSTRAINT_BYTES:
            raise ValueError(f"a {self.kind} of {n_bytes} bytes; 1 to {MAX_CONSTRAINT_BYTES} are taken")


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the tail chooses tokens; neutral values change nothing. `temperature` 0 is greedy.

    What changes the model's scores does so in this order: biases, repetition penalty, the penalties of what was
    answered, constraint, temperature, then what leaves unlikely tokens out.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()
    max_tokens: int
    presence_penalty: float = 0.0
    """Taken off the score of every token that the answer has already. Since 1.2."""
    frequency_penalty: float = 0.0
    """Likewise, once for each time that it has it. Since 1.2."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Tokens, and what is added to their scores. Since 1.2."""
    n_logprobs: int | None = None
    """Not None: each token comes with the logarithm of its probability, and with so many likeliest. Since 1.2."""
    constraint: Constraint | None = None
    """What the answer is held to; only a stop token can end it. Since 1.2."""
    n_answered: int = 0
    """The last so many tokens of the prompt are the answer's own: it goes on here. Since 1.2."""

    def __post_init__(self) -> None:
        """Refuse values outside their range. ValueError: msgspec reports it as invalid."""
        for name, value, low, high in (
            ("temperature", self.temperature, 0.0, 100.0),
            ("top_p", self.top_p, 0.0, 1.0),
            ("min_p", self.min_p, 0.0, 1.0),
            ("repetition_penalty", self.repetition_penalty, 0.01, 100.0),
            ("top_k", self.top_k, 0, 2**31 - 1),
            ("seed", self.seed, 0, 2**63 - 1),
            ("max_tokens", self.max_tokens, 1, 2**31 - 1),
            ("presence_penalty", self.presence_penalty, -MAX_PENALTY, MAX_PENALTY),
            ("frequency_penalty", self.frequency_penalty, -MAX_PENALTY, MAX_PENALTY),
            ("logprobs", self.n_logprobs or 0, 0, MAX_LOGPROBS),
            ("n_answered", self.n_answered, 0, 2**31 - 1),
            *((f"the bias of token {token_id}", bias, -MAX_BIAS, MAX_BIAS) for token_id, bias in self.logit_bias),
        ):
            if not low <= value <= high:  # NaN isn't either
                raise ValueError(f"{name} is {value}; it must be between {low} and {high}")
        if 0.0 < self.temperature < MIN_TEMPERATURE:
            raise ValueError(f"temperature is {self.temperature}; 0 is greedy, else at least {MIN_TEMPERATURE}")
        if self.top_p == 0.0:
            raise ValueError("top_p is 0; it must be above 0 and at most 1")
        if len(self.stop_token_ids) > MAX_STOP_TOKEN_IDS:
            raise ValueError(f"{len(self.stop_token_ids)} stop tokens; at most {MAX_STOP_TOKEN_IDS}")
        if len(self.logit_bias) > MAX_BIASES or len(dict(self.logit_bias)) < len(self.logit_bias):
            raise ValueError(f"{len(self.logit_bias)} biased tokens; at most {MAX_BIASES}, each once")
        if not all(0 <= token_id < 2**31 for token_id, _ in self.logit_bias):
            raise ValueError(f"a bias for a token id that is not between 0 and {2**31 - 1}")
        if self.constraint is not None and not self.stop_token_ids:
            raise ValueError(
                f"a {self.constraint.kind} ends with a stop token, and there is none: the model names none, or was "
                "told to go on after it"
            )

    @property
    def counts_answer(self) -> bool:
        """Whether it matters which tokens before the first are the answer's own."""
        return bool(self.presence_penalty or self.frequency_penalty or self.constraint is not None)

    @property
    def needs_newest(self) -> bool:
        """Whether anything is asked that only a tail of 1.2 does."""
        return bool(self.counts_answer or self.logit_bias or self.n_logprobs is not None)


class SharedPrefix(msgspec.Struct, frozen=True, kw_only=True):
    """What a session's text has in common with an earlier one's, whose cache may still be there. Since 1.2."""

    session_id: SessionId
    """The earlier session, which has ended."""
    n_positions: int
    """The first so many tokens of the prompt are that session's, and were run in it."""

    def __post_init__(self) -> None:
        """Refuse what is nothing in common. ValueError: msgspec reports it as invalid."""
        if not 1 <= self.n_positions < 2**31:
            raise ValueError(f"{self.n_positions} positions in common; at least 1")


# ------------------------------------------------------------------ data plane: to a worker


class OpenSession(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="open"):
    """Reserve a session here and further on. `tickets`: this hop's first, then the following hops' in order."""

    session_id: SessionId
    tickets: tuple[str, ...]
    deadline_s: float
    """Seconds from now that the whole generation may still take."""
    traceparent: str = ""
    """W3C's: the trace that it belongs to. Passed on unchanged; what isn't one is passed over. Since 1.2."""
    wants_timings: bool = False
    """Whether steps and tokens are to say what the hops took. Since 1.2."""
    n_prompt: int = 0
    """Tokens before the answer, or those that were run anew since; 0: not said. Since 1.2."""


class AttachTail(msgspec.Struct, frozen=True, kw_only=True, tag="attach"):
    """Client to tail: send me the tokens, sample like this. Payload: the prompt's token ids, int32.

    In a private session (the ticket says so) it is the hidden states that are sent, as `Step`; nothing is sampled,
    so `sampling` says nothing and there is no payload.
    """

    session_id: SessionId
    ticket: str
    """The route's attach ticket, which only the client has."""
    sampling: SamplingParams


class Step(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="step"):
    """Tokens [position, position + n_tokens) of a session. Payload: token ids (int32) or hidden states.

    Of a private session the client gets such steps too: what the last hop made of those that the client sent.
    Hidden states are (n_tokens, hidden_size) in `dtype`. `is_last` marks the chunk whose last position is sampled.
    The session's next step begins where this one ends, or at any position of `drafts`: the first that didn't hold.
    """

    session_id: SessionId
    position: int
    n_tokens: int
    dtype: Literal["int32", "float32", "bfloat16", "float16"]
    is_last: bool
    drafts: tuple[int, ...] = ()
    """The tokens at the last positions, which the head has guessed and the tail verifies. Since 1.2."""
    group: int = 0
    """Not 0: the hidden states are int8 codes, each so many with a scale, which follow as float32. Since 1.2."""
    timings: RouteTimings = ()
    """Of the hops before, if they are wanted. Since 1.2."""

    def __post_init__(self) -> None:
        """Refuse sizes that no session can have. ValueError: msgspec reports it as invalid."""
        if not 0 <= self.position < 2**31 or not 1 <= self.n_tokens < 2**31:
            raise ValueError(f"a step of {self.n_tokens} tokens at position {self.position}")
        if self.group not in (0, 16, 32, 64) or (self.group and self.dtype == "int32"):
            raise ValueError(f"{self.dtype} in groups of {self.group}; hidden states come in 16, 32 or 64")
        if self.drafts and (len(self.drafts) >= min(self.n_tokens, MAX_DRAFTS + 1) or not self.is_last):
            raise ValueError(f"{len(self.drafts)} drafts in a step of {self.n_tokens} tokens; at most {MAX_DRAFTS}")


class FeedToken(msgspec.Struct, frozen=True, kw_only=True, tag="feed"):
    """Tail to head: the token that was sampled for `position`; run it."""

    session_id: SessionId
    position: int
    token_id: int


class CloseSession(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="close"):
    """Free the session here and pass this on to the next hop. Repeating it does no harm."""

    session_id: SessionId
    reason: Literal["finished", "cancelled", "failed", "deadline", "lost"]
    worker_id: WorkerId | None = None
    """Of one that failed: the worker to blame, unless it is the one that sends this. Since 1.1."""
    finish_reason: Literal["stop", "length"] | None = None
    """Of a private one that finished: why, which only its client knows. Since 1.2."""
    error_code: str = ""
    """Of one that failed by no worker's fault: `model_fault` or `key_revoked`. Since 1.2."""


# ------------------------------------------------------------------ data plane: back to who opened


class SessionOpened(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="opened"):
    """The session is reserved here and on every later hop."""

    session_id: SessionId
    n_cached: int = 0
    """Positions that are here already, from an earlier session: steps may begin after them, or anywhere before.
    Where the first one begins, what is here ends. Since 1.2."""
    prompt_costs: RoutePromptCosts = ()
    """Of this hop and the later ones, towards a worker; empty unless all have measured it. Since 1.2."""


class Credit(msgspec.Struct, frozen=True, kw_only=True, tag="credit"):
    """`n_steps` step frames of the session have been consumed; as many more may be sent."""

    session_id: SessionId
    n_steps: int

    def __post_init__(self) -> None:
        """Refuse credit that was never owed. ValueError: msgspec reports it as invalid."""
        if not 1 <= self.n_steps <= STEP_CREDIT:
            raise ValueError(f"credit for {self.n_steps} steps; 1 to {STEP_CREDIT}")


class SessionEnded(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="ended"):
    """The session failed at `worker_id`; everything of it is freed there and further on."""

    session_id: SessionId
    worker_id: WorkerId
    error: ErrorBody
    noticed_by: WorkerId | None = None
    """Who noticed it first, passed on unchanged: lost connections' ends are that and `worker_id`. Since 1.2."""


class Token(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="token"):
    """Tail to client: the generation's token number `index` (from 0); the last one carries a reason."""

    session_id: SessionId
    index: int
    token_id: int
    finish_reason: FinishReason | None = None
    n_drafted: int = 0
    """On the first token of a round with guesses: how many there were. Since 1.2."""
    n_accepted: int = 0
    """Likewise: how many of them are tokens of the answer. Since 1.2."""
    logprob: float | None = None
    """The natural logarithm of its probability by the model alone, before what was asked changed it. Since 1.2."""
    top_logprobs: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens for its place and the same of them, the likeliest first. Since 1.2."""
    timings: RouteTimings = ()
    """Of all hops, on the last token of a round, if they are wanted. Since 1.2."""
    is_outgrown: bool = False
    """Whether the answer goes on, but by another session: all of the text is to be run anew. Since 1.2."""

    def __post_init__(self) -> None:
        """Refuse what no round can have. ValueError: msgspec reports it as invalid."""
        if not 0 <= self.n_accepted <= self.n_drafted <= MAX_DRAFTS:
            raise ValueError(f"{self.n_accepted} of {self.n_drafted} drafts accepted; at most {MAX_DRAFTS}")
        if len(self.top_logprobs) > MAX_LOGPROBS:
            raise ValueError(f"{len(self.top_logprobs)} alternatives to a token; at most {MAX_LOGPROBS}")


ToWorker = OpenSession | AttachTail | Step | FeedToken | CloseSession
"""Data plane, in the direction of the ring."""

Backward = SessionOpened | Credit | SessionEnded | Token
"""Data plane, back to who opened the session."""

DataMessage = ToWorker | Backward
