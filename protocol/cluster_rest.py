"""Bodies of what operators ask about the cluster as a whole, and by which they say which models it serves.

JSON on the wire.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from protocol.control_messages import LinkReport, SpanStatus, WorkerState
from protocol.ids import BlockRange, CoordinatorId, ModelName, Revision, WorkerId
from protocol.messages import KvPrecision
from protocol.rest import Body, ModelInfo, RequestBody

TrustLevel = Literal["trusted", "probation", "weak", "quarantined", "banned"]


class WorkerInfo(Body, frozen=True, kw_only=True):
    """One worker as `coord status` shows it."""

    worker_id: WorkerId
    hostname: str
    url: str
    state: WorkerState
    reason: str
    """Why it isn't ready and what happens next; empty when ready."""
    device: str
    precision: str
    memory_bytes: int
    spans: tuple[SpanStatus, ...]
    n_sessions: int
    free_kv_bytes: int
    decode_s_per_block: float
    last_seen_s_ago: float
    version: str = ""
    """Of Brigade, as the worker says; empty until it has."""
    pinned_blocks: BlockRange | None = None
    pinned: str = ""
    """How it comes to be pinned to them, in words; empty if it isn't. Since 1.2."""
    hop_p50_s: float = 0.0
    """From a token's arrival there to its being handed on: the middle of the latest ones. Since 1.2."""
    hop_p99_s: float = 0.0
    round_trips_s: dict[WorkerId, float] = msgspec.field(default_factory=dict)
    """To the workers that it has connections to."""
    links: dict[WorkerId, LinkReport] = msgspec.field(default_factory=dict)
    kv_precision: KvPrecision | None = None
    """What its keys and values are kept in, if not in what is computed in."""
    trust: float = 0.5
    """Score in [0, 1]; a new worker has 0.5. Since 1.2."""
    trust_level: TrustLevel = "probation"
    """What follows from it. Since 1.2."""
    owner: str | None = None
    """Whose machine it is, where that was looked up. Since 1.2."""
    clock_offset_s: float = 0.0
    """How far its clock is ahead of ours, below 0 behind it, where that is too far to join. Since 1.2."""


class ClusterStatus(Body, frozen=True, kw_only=True):
    """`GET /admin/v1/status`."""

    coordinator_id: CoordinatorId
    version: str
    url: str
    database: str
    """Kind of database (sqlite, postgresql), never its URL."""
    database_problem: str = ""
    """Why the database can't be used now; empty while it can."""
    models: tuple[ModelInfo, ...]
    workers: tuple[WorkerInfo, ...]
    moving: str = ""
    """How far a move to something better is: who, why, what next; empty while there is none. Since 1.2."""
    audits: str = ""
    """Why some blocks can't be audited; empty if all can, or audits are off. Since 1.2."""
    joining: str = ""
    """How new workers find the coordinator on the local network, and how many invites are open. Since 1.2."""


class AddModelRequest(RequestBody, frozen=True, kw_only=True):
    """`POST /admin/v1/models`: serve the manifest `revision`, already in the coordinator's store, as `name`."""

    name: ModelName
    revision: Revision
    n_replicas: int = 1
    """How many workers are to hold each block."""
    signature: str | None = None
    """Of the manifest, by its author (`protocol.model_signature`). Since 1.2."""
    pinned_ends: bool = False
    """As in `ModelInfo`. Since 1.2."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense. ValueError: msgspec reports it as invalid."""
        check_replicas(self.n_replicas)


class ChangeModelRequest(RequestBody, frozen=True, kw_only=True):
    """`PATCH /admin/v1/models/{name}`: what is left out stays."""

    n_replicas: int | None = None
    signature: str | None = None
    """Takes the place of the one that the model has. Since 1.2."""
    pinned_ends: bool | None = None
    """Since 1.2."""

    def __post_init__(self) -> None:
        """Refuse what changes nothing or makes no sense. ValueError: msgspec reports it as invalid."""
        if (self.n_replicas, self.signature, self.pinned_ends) == (None, None, None):
            raise ValueError("nothing is to be changed: give n_replicas, signature or pinned_ends")
        if self.n_replicas is not None:
            check_replicas(self.n_replicas)


MAX_REPLICAS = 1000
"""More workers than that nobody has."""


def check_replicas(n_replicas: int) -> None:
    """ValueError unless so many workers can be asked to hold each block."""
    if not 1 <= n_replicas <= MAX_REPLICAS:
        raise ValueError(f"{n_replicas} replicas; 1 to {MAX_REPLICAS} can be asked for")
