"""Every message that travels on a socket, filed by receiver; HTTP bodies are in `protocol.rest`.

Frozen, tagged structs; the unions at the end are closed, so a `match` over them is checked for completeness.
Ranges and limits that can be said of a value alone are checked here, when it comes off the wire too.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from protocol.errors import ErrorBody
from protocol.ids import BlockRange, FileHash, ModelName, Revision, SessionId, WorkerId

PROTOCOL_VERSION = "1.1"
"""Major.minor. Sides of different majors refuse each other; what a minor may change: `protocol.compatibility`."""

STEP_CREDIT = 4
"""Step frames of one session that may be under way on one hop before the receiver has said `Credit`."""

MAX_STOP_TOKEN_IDS = 64

MIN_TEMPERATURE = 1e-3
"""Below it logits overflow float32, and sampling is greedy in all but name."""

FinishReason = Literal["stop", "length", "cancelled"]
Precision = Literal["float32", "bfloat16", "float16"]
SpanState = Literal["downloading", "loading", "ready", "failed"]
WorkerState = Literal[
    "enrolling", "idle", "downloading", "loading", "ready", "draining", "suspect", "lost", "gone", "quarantined"
]


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How the tail chooses tokens; neutral values change nothing. `temperature` 0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()
    max_tokens: int

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
        ):
            if not math.isfinite(value) or not low <= value <= high:
                raise ValueError(f"{name} is {value}; it must be between {low} and {high}")
        if 0.0 < self.temperature < MIN_TEMPERATURE:
            raise ValueError(f"temperature is {self.temperature}; 0 is greedy, else at least {MIN_TEMPERATURE}")
        if self.top_p == 0.0:
            raise ValueError("top_p is 0; it must be above 0 and at most 1")
        if len(self.stop_token_ids) > MAX_STOP_TOKEN_IDS:
            raise ValueError(f"{len(self.stop_token_ids)} stop tokens; at most {MAX_STOP_TOKEN_IDS}")


# ------------------------------------------------------------------ data plane: to a worker


class OpenSession(msgspec.Struct, frozen=True, kw_only=True, tag="open"):
    """Reserve a session here and further on. `tickets`: this hop's first, then the following hops' in order."""

    session_id: SessionId
    tickets: tuple[str, ...]
    deadline_s: float
    """Seconds from now that the whole generation may still take."""


class AttachTail(msgspec.Struct, frozen=True, kw_only=True, tag="attach"):
    """Client to tail: send me the tokens, sample like this. Payload: the prompt's token ids, int32."""

    session_id: SessionId
    ticket: str
    """The route's attach ticket, which only the client has."""
    sampling: SamplingParams


class Step(msgspec.Struct, frozen=True, kw_only=True, tag="step"):
    """Tokens [position, position + n_tokens) of a session. Payload: token ids (int32) or hidden states.

    Hidden states are (n_tokens, hidden_size) in `dtype`. `is_last` marks the chunk whose last position is sampled.
    """

    session_id: SessionId
    position: int
    n_tokens: int
    dtype: Literal["int32", "float32", "bfloat16", "float16"]
    is_last: bool

    def __post_init__(self) -> None:
        """Refuse sizes that no session can have. ValueError: msgspec reports it as invalid."""
        if not 0 <= self.position < 2**31 or not 1 <= self.n_tokens < 2**31:
            raise ValueError(f"a step of {self.n_tokens} tokens at position {self.position}")


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


# ------------------------------------------------------------------ data plane: back to who opened


class SessionOpened(msgspec.Struct, frozen=True, kw_only=True, tag="opened"):
    """The session is reserved here and on every later hop."""

    session_id: SessionId


class Credit(msgspec.Struct, frozen=True, kw_only=True, tag="credit"):
    """`n_steps` step frames of the session have been consumed; as many more may be sent."""

    session_id: SessionId
    n_steps: int

    def __post_init__(self) -> None:
        """Refuse credit that was never owed. ValueError: msgspec reports it as invalid."""
        if not 1 <= self.n_steps <= STEP_CREDIT:
            raise ValueError(f"credit for {self.n_steps} steps; 1 to {STEP_CREDIT}")


class SessionEnded(msgspec.Struct, frozen=True, kw_only=True, tag="ended"):
    """The session failed at `worker_id`; everything of it is freed there and further on."""

    session_id: SessionId
    worker_id: WorkerId
    error: ErrorBody


class Token(msgspec.Struct, frozen=True, kw_only=True, tag="token"):
    """Tail to client: the generation's token number `index` (from 0); the last one carries a reason."""

    session_id: SessionId
    index: int
    token_id: int
    finish_reason: FinishReason | None = None


# ------------------------------------------------------------------ control socket: to the coordinator


class SpanStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker says of one assigned span."""

    model: ModelName
    revision: Revision
    blocks: BlockRange
    state: SpanState
    reason: str
    """Why it is in this state and what happens next, for people; empty when ready."""
    progress: float = 0.0
    """Share of the state's work that is done, 0 to 1."""


class DeviceReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker measured of itself when it joined."""

    device: str
    """torch's name of the device: cpu, cuda:0, mps."""
    precision: Precision
    n_threads: int
    memory_bytes: int
    """Most bytes that weights and KV may take here together."""
    bandwidth_bytes_per_s: float
    """Streaming reads of weights: what bounds decode."""
    flops_per_s: float
    """Matrix products at `precision`: what bounds prefill."""


class Announce(msgspec.Struct, frozen=True, kw_only=True, tag="announce"):
    """First message of a control socket: who I am, where I listen, what I have, what was asked of me here."""

    url: str
    """Where others reach this worker's data plane, https://host:port."""
    hostname: str
    version: str
    device: DeviceReport
    epoch: int
    """Epoch of the assignment that the spans below come from; 0 if none."""
    spans: tuple[SpanStatus, ...]
    files: tuple[FileHash, ...]
    pinned_model: ModelName | None = None
    pinned_blocks: BlockRange | None = None
    """Blocks that the operator fixed by `worker join --blocks`."""


class SpanReport(msgspec.Struct, frozen=True, kw_only=True, tag="spans"):
    """The spans' states changed. Of a stale epoch: ignored."""

    epoch: int
    spans: tuple[SpanStatus, ...]


class FilesHeld(msgspec.Struct, frozen=True, kw_only=True, tag="files"):
    """Model files that this worker can now serve to others, all of them."""

    files: tuple[FileHash, ...]


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True, tag="heartbeat"):
    """Every `HEARTBEAT_S`: how loaded the worker is. Times are 0.0 until measured."""

    n_sessions: int
    n_queued: int
    free_kv_bytes: int
    decode_s_per_block: float
    """Measured seconds that one token takes in one block."""
    prefill_s_per_token_block: float
    round_trips_s: dict[WorkerId, float] = {}


class GenerationReport(msgspec.Struct, frozen=True, kw_only=True, tag="generation"):
    """From the tail, when a generation is over: what it used."""

    session_id: SessionId
    n_prompt_tokens: int
    n_completion_tokens: int
    outcome: Literal["stop", "length", "cancelled", "failed", "deadline"]


class Leaving(msgspec.Struct, frozen=True, kw_only=True, tag="leaving"):
    """The worker drains (no new sessions, please) and then goes."""

    reason: str


# ------------------------------------------------------------------ control socket: to a worker


class SpanAssignment(msgspec.Struct, frozen=True, kw_only=True):
    """A range of blocks that a worker is to hold."""

    model: ModelName
    revision: Revision
    blocks: BlockRange


class Assign(msgspec.Struct, frozen=True, kw_only=True, tag="assign"):
    """Hold exactly these spans. Replaces every assignment of a lower epoch."""

    epoch: int
    spans: tuple[SpanAssignment, ...]
    reason: str


class Drain(msgspec.Struct, frozen=True, kw_only=True, tag="drain"):
    """Finish what runs, take nothing new, then leave."""

    reason: str


class Dismiss(msgspec.Struct, frozen=True, kw_only=True, tag="dismiss"):
    """The coordinator closes this control socket; `error` says why and whether to come back."""

    error: ErrorBody


HEARTBEAT_S = 1.0
"""How often a worker says `Heartbeat`."""

ToWorker = OpenSession | AttachTail | Step | FeedToken | CloseSession
"""Data plane, in the direction of the ring."""

Backward = SessionOpened | Credit | SessionEnded | Token
"""Data plane, back to who opened the session."""

DataMessage = ToWorker | Backward

WorkerToCoordinator = Announce | SpanReport | FilesHeld | Heartbeat | GenerationReport | Leaving
CoordinatorToWorker = Assign | Drain | Dismiss
