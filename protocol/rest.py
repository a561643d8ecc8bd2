"""Bodies of what clients ask and of the answers, and what bodies of all kinds have in common. JSON on the wire.

What programs say to each other may have fields that this side doesn't know yet: they are passed over. What a person
may have written by hand (`RequestBody`) may not: there an unknown field is a slip, and to pass it over would be to
do something else than was asked. A newer client leaves out what an older coordinator can't know
(`protocol.compatibility`).
"""

from __future__ import annotations

from typing import Literal

import msgspec

from protocol.client_legs import ClientLeg, check_client_legs
from protocol.errors import ErrorBody
from protocol.ids import BlockRange, CoordinatorId, ModelName, Revision, SessionId, WorkerId
from protocol.key_limits import RateLeft
from protocol.manifest import ModelKind
from protocol.messages import KvPrecision, Precision, Quantization, SharedPrefix
from protocol.model_signature import SignedBy

MAX_ROUTE_WAIT_S = 30.0
"""An answer that waits longer may be taken for lost; ask again."""
MAX_COUNT = 2**31 - 1  # of tokens, and of blocks

ModelState = Literal["ready", "waiting", "incomplete"]


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every body: immutable, by name."""


class RequestBody(Body, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of what clients and operators ask: closed, and as short as it can be said."""


class Query(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of query parameters: an unknown one is refused, since passing it over would answer another question."""


class ErrorAnswer(Body, frozen=True, kw_only=True, omit_defaults=True):
    """Body of every answer that is an error."""

    error: ErrorBody
    rates: tuple[RateLeft, ...] = ()
    """What is left of the key's limits, where one of them is the reason. Since 1.2."""


class Hello(Body, frozen=True, kw_only=True):
    """`GET /v1/hello`, open to anybody: who answers here, and the time there (seconds since 1970, UTC)."""

    program: Literal["brigade-coordinator"] = "brigade-coordinator"
    protocol_version: str
    coordinator_id: CoordinatorId
    time_s: float


# ------------------------------------------------------------------ a client asks


class BlockCoverage(Body, frozen=True, kw_only=True):
    """A run of blocks and how many ready workers hold each of them."""

    blocks: BlockRange
    n_workers: int


class ModelInfo(Body, frozen=True, kw_only=True):
    """One model and whether it can be used now."""

    name: ModelName
    revision: Revision
    state: ModelState
    reason: str
    """Why it isn't ready and what happens next; when ready, why it has fewer replicas than are wanted, or empty."""
    architecture: str
    n_blocks: int
    context_length: int
    size_bytes: int
    is_chat: bool
    coverage: tuple[BlockCoverage, ...]
    n_replicas: int = 1
    """How many workers are to hold each block."""
    signed: SignedBy | None = None
    """Since 1.2."""
    pinned_ends: bool = False
    """Whether all its routes begin and end on workers whose trust an operator pinned. Since 1.2."""
    kind: ModelKind = "decoder"
    """An encoder is asked for hidden states alone. Since 1.2."""
    refused: str = ""
    """Why nothing new begins with it though its blocks may be there; empty where it may. Since 1.2."""
    n_missing_files: int = 0
    """Files of it that the coordinator's store lacks, as after a restore; told by lists alone. Since 1.2."""


class ModelList(Body, frozen=True, kw_only=True):
    """`GET /v1/models`, and for operators `GET /admin/v1/models`, in pages."""

    models: tuple[ModelInfo, ...]
    next_cursor: str | None = None


STALLED = "stalled"
"""Code of a failure that is nobody's to anybody's knowledge: nothing came in time."""


class HopFailure(RequestBody, frozen=True, kw_only=True):
    """Why a client gave up a route: what it was told, or that nothing came."""

    worker_id: WorkerId | None = None
    """The worker to blame; None if the route just stood still."""
    noticed_by: WorkerId | None = None
    """The worker that said so; None if the client saw it itself."""
    code: str
    """Of the error, as in `protocol.errors`; or `STALLED`."""
    session_id: SessionId | None = None
    """The session that failed, if not the one that is continued but a later attempt to go on from that. Passed over
    with the failure if this key has no such session. Since 1.2."""


class RouteRequest(RequestBody, frozen=True, kw_only=True):
    """`POST /v1/routes`: a way through the model for one generation."""

    model: ModelName
    n_prompt_tokens: int
    max_tokens: int
    exclude: tuple[WorkerId, ...] = ()
    continues: SessionId | None = None
    """The session of the same key that failed and is to go on by another route."""
    failure: HopFailure | None = None
    """How that session failed, or the one that is named in it."""
    wait_s: float = 0.0
    """How long the answer may wait for a route, if there is none yet."""
    speculate: bool = True
    """Whether the workers may guess tokens ahead where it pays; the tokens are the same either way. Since 1.2."""
    prefix: SharedPrefix | None = None
    """What the prompt shares with an earlier session of the same key: a route over its workers needn't run that
    again. Passed over if there is no such session. Since 1.2."""
    min_trust: float = 0.0
    """Only workers of this trust or more. Since 1.2."""
    pinned_ends: bool = False
    """Whether the first and last worker, which see the tokens, must have a trust that was pinned. Since 1.2."""
    private_blocks: int | None = None
    """Not None: a private session. The client runs the model's first and last so many blocks itself, embedding and
    head too, and the route covers what is between them. Since 1.2."""
    states_after: int | None = None
    """Not None: hidden states of the whole prompt are wanted, not tokens, after the first so many blocks, which the
    route covers; 0: what goes into the first; all: after the final norm. Since 1.2."""
    newest_sampling: bool = False
    """Whether the tail must know what 1.2 added to `SamplingParams`: constraints, log probabilities, biases,
    penalties of what was answered. Since 1.2."""
    client_legs: tuple[ClientLeg, ...] = ()
    """How far the client is from workers that it has been connected to; workers that aren't known here are passed
    over. Since 1.2."""

    def __post_init__(self) -> None:
        """Refuse counts that no generation can have. ValueError: msgspec reports it as invalid."""
        if not 1 <= self.n_prompt_tokens <= MAX_COUNT:
            raise ValueError(f"the prompt has {self.n_prompt_tokens} tokens; it can have 1 to {MAX_COUNT:,}")
        if self.states_after is not None:
            _check_states(self)
        elif not 1 <= self.max_tokens <= MAX_COUNT:
            raise ValueError(f"max_tokens is {self.max_tokens}; it can be 1 to {MAX_COUNT:,}")
        if not 0.0 <= self.wait_s <= MAX_ROUTE_WAIT_S:
            raise ValueError(f"wait_s is {self.wait_s}; it must be between 0 and {MAX_ROUTE_WAIT_S:g}")
        if not 0.0 <= self.min_trust <= 1.0:
            raise ValueError(f"min_trust is {self.min_trust}; it must be between 0 and 1")
        if self.private_blocks is not None and not 1 <= self.private_blocks <= MAX_COUNT:
            raise ValueError(f"private_blocks is {self.private_blocks}; at least 1 at each end of the model")
        check_client_legs(self.client_legs)


def _check_states(wanted: RouteRequest) -> None:
    is_count = 0 <= (wanted.states_after or 0) <= MAX_COUNT
    if not is_count or wanted.max_tokens != 0 or wanted.private_blocks is not None:
        raise ValueError("states_after is a number of blocks; with it max_tokens is 0 and private_blocks not given")


class RouteHop(Body, frozen=True, kw_only=True):
    """One stage of a route: who, where, which blocks, and the ticket that lets one in."""

    worker_id: WorkerId
    url: str
    blocks: BlockRange
    precision: Precision
    quantization: Quantization | None = None
    """What the weights are held in, if not in `precision`, which is computed in. Since 1.2."""
    kv_precision: KvPrecision | None = None
    """What keys and values are kept in, if not in what is computed in. Since 1.2."""
    ticket: str


class RouteGrant(Body, frozen=True, kw_only=True):
    """Answer to `RouteRequest`. Hops in order; together they cover the model exactly, or what is asked of it."""

    session_id: SessionId
    model: ModelName
    revision: Revision
    hops: tuple[RouteHop, ...]
    attach_ticket: str
    """Lets the client, and nobody else, have the tokens at the last hop. Not to be shown to any other worker."""
    expires_in_s: float
    rates: tuple[RateLeft, ...] = ()
    """Those that limit the key. Since 1.2."""
