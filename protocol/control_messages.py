"""Every message of the control socket between a worker and its coordinator, filed by receiver.

Frozen, tagged structs, checked as those of the data plane (`protocol.messages`) are.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from protocol.errors import ErrorBody
from protocol.ids import MAX_BLOCKS, BlockRange, FileHash, ModelName, Revision, SessionId, WorkerId
from protocol.messages import KvPrecision, Precision, Quantization, WeightFormat

HEARTBEAT_S = 1.0
"""How often a worker says `Heartbeat`."""

MAX_GENERATION_S = 1e6
"""No token takes so long: what says so was measured by no clock."""
MAX_SERVES_ON_S = 3600.0
"""A worker that leaves so late has no need to say so yet."""

SpanState = Literal["downloading", "loading", "ready", "failed"]
WorkerState = Literal[
    "enrolling", "idle", "downloading", "loading", "ready", "draining", "suspect", "lost", "gone", "quarantined"
]


# ------------------------------------------------------------------ to the coordinator


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
    note: str = ""
    """What an operator should know of a span that is ready, e.g. why its sessions run one at a time."""
    quantization: Quantization | None = None
    """As it was assigned. Since 1.2."""
    kv_bytes_by_block: Annotated[tuple[int, ...], msgspec.Meta(max_length=MAX_BLOCKS)] = ()
    """Of a span that is ready and whose blocks differ in it: what one position takes in each cache. Since 1.2."""


class DeviceReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
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
    quantization: Quantization | None = None
    """What the weights of blocks are held in, if not in `precision`, which is then computed in. Since 1.2."""
    quantizations: tuple[Quantization, ...] = ()
    """What the device could hold them in besides. Since 1.2."""
    is_precision_open: bool = False
    """Whether its operator left it to the coordinator to have blocks held so where nothing else fits. Since 1.2."""
    kv_precision: KvPrecision | None = None
    """What keys and values are kept in, if not in what is computed in. Since 1.2."""
    runs_encoders: bool = False
    """Whether it can hold models that generate nothing. Since 1.2."""

    @property
    def held_as(self) -> WeightFormat:
        """What the weights of blocks are held in."""
        return self.quantization or self.precision


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
    leaving: tuple[SpanAssignment, ...] = ()
    """Spans of earlier epochs that it serves until those above are ready. Since 1.2."""


class SpanReport(msgspec.Struct, frozen=True, kw_only=True, tag="spans"):
    """The spans' states changed. Of a stale epoch: ignored."""

    epoch: int
    spans: tuple[SpanStatus, ...]


class FilesHeld(msgspec.Struct, frozen=True, kw_only=True, tag="files"):
    """Model files that this worker can now serve to others, all of them."""

    files: tuple[FileHash, ...]


class LinkReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker says of its connection to another one. Since 1.2."""

    n_bytes_sent: int
    """Since the connection was made."""
    bytes_per_s: float = 0.0
    """What the link lets through, by the time that big frames take beyond a round trip; 0.0 until measured."""


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="heartbeat"):
    """Every `HEARTBEAT_S`: how loaded the worker is. Times are 0.0 until measured."""

    n_sessions: int
    n_queued: int
    free_kv_bytes: int
    decode_s_per_block: float
    """Measured seconds that one token takes in one block, the model's end spread over the blocks run before it;
    begun anew when other blocks are loaded."""
    prefill_s_per_token_block: float
    round_trips_s: dict[WorkerId, float] = {}
    hop_p50_s: float = 0.0
    """From a token's arrival to its being handed on, the stage's compute included: the middle of the latest ones.
    Since 1.2."""
    hop_p99_s: float = 0.0
    links: dict[WorkerId, LinkReport] = {}
    longest_sessions: dict[ModelName, int] = {}
    """Positions that one session over the worker's whole span of a model can have if it has all of the memory for
    caches; a model that isn't named: unknown. Since 1.2."""
    ends_per_block: float | None = None
    """How often the model's end (final norm and head) was run for each block, averaged as `decode_s_per_block` is;
    None: unsaid. Since 1.2."""
    time_s: float = 0.0
    """The worker's clock, seconds since 1970, UTC: it may go wrong long after joining. 0.0: unsaid. Since 1.2."""


class GenerationReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="generation"):
    """From the tail, when a generation is over: what it used."""

    session_id: SessionId
    n_prompt_tokens: int
    n_completion_tokens: int
    outcome: Literal["stop", "length", "cancelled", "failed", "deadline"]
    first_token_s: float | None = None
    """From the client's coming to the first token on its way to it; None if there was none. Since 1.2."""
    s_per_token: float | None = None
    """Of the tokens after the first, on average; None if there were none. Since 1.2."""

    def __post_init__(self) -> None:
        """Refuse what no clock measures. ValueError: msgspec reports it as invalid."""
        for name, seconds in (("first_token_s", self.first_token_s), ("s_per_token", self.s_per_token)):
            if seconds is not None and not 0.0 <= seconds <= MAX_GENERATION_S:
                raise ValueError(f"{name} is {seconds}; it must be between 0 and {MAX_GENERATION_S:g}")


MAX_SESSIONS_NAMED = 1024
"""Of one message; who has more to say says it in several."""


class SessionsBegun(msgspec.Struct, frozen=True, kw_only=True, tag="sessions-begun"):
    """From heads: sessions that clients have opened here and that run, each once a socket, and over. Since 1.2."""

    session_ids: Annotated[tuple[SessionId, ...], msgspec.Meta(max_length=MAX_SESSIONS_NAMED)]
    was_away: bool
    """Whether they ran before this socket was there, so that nobody may have heard of them when they began."""
    over: Annotated[tuple[SessionId, ...], msgspec.Meta(max_length=MAX_SESSIONS_NAMED)] = ()
    """Of those named before, the ones that run no more: their tails report them, if they ever heard of them."""


class Leaving(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="leaving"):
    """The worker drains (no new sessions, please) and then goes."""

    reason: str
    serves_on_s: float = 0.0
    """It takes new sessions for so long, or until it is told `Drain`: others may take its place. Since 1.2."""

    def __post_init__(self) -> None:
        """Refuse times that nobody waits. ValueError: msgspec reports it as invalid."""
        if not 0.0 <= self.serves_on_s <= MAX_SERVES_ON_S:
            raise ValueError(f"serves_on_s is {self.serves_on_s}; it must be between 0 and {MAX_SERVES_ON_S:g}")


# ------------------------------------------------------------------ to a worker


class SpanAssignment(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A range of blocks that a worker is to hold."""

    model: ModelName
    revision: Revision
    blocks: BlockRange
    quantization: Quantization | None = None
    """What their weights are to be held in, if not as the worker holds weights otherwise. Since 1.2."""


class Assign(msgspec.Struct, frozen=True, kw_only=True, tag="assign"):
    """Hold exactly these spans. Replaces every assignment of a lower epoch."""

    epoch: int
    spans: tuple[SpanAssignment, ...]
    reason: str


class Drain(msgspec.Struct, frozen=True, kw_only=True, tag="drain"):
    """Finish what runs, take nothing new, then leave."""

    reason: str


class EndSessions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="end-sessions"):
    """End these sessions now, as far as they are here. Since 1.2."""

    session_ids: tuple[SessionId, ...] = ()
    neighbours: tuple[WorkerId, ...] = ()
    """All whose route has one of these next to this worker, or at its head or tail: they were banned."""
    error: ErrorBody
    """Why; the client is told so."""


class Dismiss(msgspec.Struct, frozen=True, kw_only=True, tag="dismiss"):
    """The coordinator closes this control socket; `error` says why and whether to come back."""

    error: ErrorBody


WorkerToCoordinator = Announce | SpanReport | FilesHeld | Heartbeat | SessionsBegun | GenerationReport | Leaving
CoordinatorToWorker = Assign | Drain | EndSessions | Dismiss
