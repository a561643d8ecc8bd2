"""The cluster as the coordinator sees it: a frozen snapshot.

Mappings are never changed in place; `transition` makes new ones. Times are seconds since 1970, UTC.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast, get_args

from coordinator.policy.authors import Authors
from coordinator.policy.pins import Pin
from coordinator.policy.statuses import span_in
from coordinator.policy.trust import NEWCOMER, Standing, TrustRecord
from coordinator.policy.under_way import Moving
from protocol.control_messages import DeviceReport, Heartbeat, SpanAssignment, SpanStatus
from protocol.errors import ConfigError
from protocol.ids import BlockRange, FileHash, ModelName, Revision, WorkerId
from protocol.manifest import Manifest
from protocol.messages import Quantization
from protocol.model_signature import ModelSignature

Presence = Literal["expected", "here", "suspect", "lost", "gone"]
"""expected: enrolled or known from before a restart, no control socket yet. suspect: silent, or its socket closed;
not routed. lost: so for longer; its blocks are given to others. gone: it left, or was lost for very long."""

Placement = Literal["balance", "one-stream", "many-streams", "spread"]
"""What blocks are given out for: as fast as can be for one stream, for many at once, or for both alike; or spread
over all workers that are there, so that each holds as little as it can and has the more room for caches."""


def checked_placement(text: str, name: str) -> Placement:
    """The text, if it is one of these; `name` says where it was given. ConfigError: it isn't."""
    for known in get_args(Placement):
        if text == known:
            return cast(Placement, known)
    raise ConfigError(f"{name} {text[:40]!r} isn't one of {', '.join(get_args(Placement))}")


Replan = Literal["auto", "off"]
"""Whether what is served is placed anew, step by step, where that is much better: by itself, or only when asked."""


def checked_replan(text: str, name: str) -> Replan:
    """The text, if it is one of these; `name` says where it was given. ConfigError: it isn't."""
    for known in get_args(Replan):
        if text == known:
            return cast(Replan, known)
    raise ConfigError(f"{name} {text[:40]!r} isn't one of {', '.join(get_args(Replan))}")


TICKET_LIFE_S = 3600.0
NO_TICKETS_FROM_S = TICKET_LIFE_S - 600.0
"""A worker whose clock is so far ahead leaves a ticket ten minutes at most, which an answer may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySettings:
    """What decisions depend on beside what happens."""

    placement: Placement = "balance"
    counts_head: bool = True
    """Whether plans count what the last stage runs besides its blocks."""
    auto_quantize: bool = True
    """Whether workers that leave their precision open hold blocks in fewer bits where nothing else fits."""
    require_signed_models: bool = False
    """Whether generations begin only with models that a trusted author signed."""
    gateway_url: str = ""
    """Origin of the gateway that the dashboard's chat page talks to; empty: there is none."""

    earned_priority: bool = False
    """Whether keys of owners whose workers gave much are served as one class higher (`policy.earned`)."""
    default_requests_per_min: float = 0.0
    """Limits of new client keys where nothing else is said; 0: none."""
    default_tokens_per_min: float = 0.0
    default_tokens_per_day: float = 0.0
    default_max_concurrent: float = 0.0

    audit_share: float = 0.0
    """Most of a worker's time that audits may take; 0: there are none but by hand."""

    suspect_after_s: float = 3.0
    failover_after_s: float = 2.0
    """Others with room are given the blocks of a worker that has been away for this long as well (`is_doubted`)."""
    lost_after_s: float = 15.0
    longest_start_s: float = 120.0
    """A worker that has enrolled has so long to connect: torch takes it 40 to 50 s where ten share two cores."""
    settle_s: float = 1.0
    """Placement waits until nobody joined or left, and no model changed, for this long."""
    forget_after_s: float = 3600.0
    """A lost worker is gone, and a gone one no longer shown, after this long."""
    longest_departure_s: float = 60.0
    """A worker that an operator drains serves on for so long at most, until others hold its blocks."""
    replan: Replan = "auto"
    replan_every_s: float = 60.0
    """Nothing is moved because something better exists until nothing else has changed for this long. Each time that
    something is, the next time is twice as far off, until somebody joins or leaves."""
    replan_margin: float = 1.2
    """What is served is moved only for something that is modelled to be so many times as fast at least."""
    longest_step_s: float = 3600.0
    """A step of such a move that takes longer ends it."""
    longest_sweep_s: float = 2.0
    """Between two looks at the clock. More, and the clock was set or we stood still, and nobody was silent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What a worker is to hold. The epoch rises with every change and never falls."""

    epoch: int = 0
    spans: tuple[SpanAssignment, ...] = ()
    reason: str = ""
    """Why these spans; of an empty assignment: why none, and what would change that."""
    leaving: tuple[SpanAssignment, ...] = ()
    """Spans of earlier epochs that the worker serves until those above are ready, at most one of a model."""
    unwanted_bytes: int | None = 0
    """Most that weights of earlier epochs may take there until then; None where that isn't known."""
    capacity_bytes: int | None = None
    """What the worker could hold when the spans were chosen; None where the choice wasn't ours (pinned, announced,
    from before a restart)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Departure:
    """That a worker is to leave as soon as others serve its blocks."""

    reason: str
    by_s: float
    """When it leaves at the latest."""
    is_own_wish: bool = False
    """Whether it was stopped where it runs: then it may be started again, and its blocks are kept for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRecord:
    """One worker."""

    worker_id: WorkerId
    presence: Presence
    seen_s: float
    """When it was last heard of; when the coordinator restarted, if not heard of since."""
    is_connected: bool = False
    has_said_leaving: bool = False
    drain_reason: str | None = None
    """Set while the worker drains."""
    departure: Departure | None = None
    """Set while it is to drain and others are still to load its blocks: it serves until then."""
    kept_until_s: float | None = None
    """Set when it was stopped where it runs: its blocks are kept for it until then, in case that was a restart."""
    starts_by_s: float | None = None
    """Set when it enrolled, until it is heard on a control socket: until then it isn't lost, since it may start."""
    token_until_s: float = 0.0  # of its latest enrolment; 0.0: before this coordinator was started
    is_doubted: bool = False
    """Whether it was away, or let nobody in, so long that others get its blocks too; once back it keeps them."""
    hostname: str = ""
    version: str = ""
    """Of Brigade, as it says."""
    url: str = ""
    device: DeviceReport | None = None
    announced_model: ModelName | None = None
    """The only model of which it is to hold blocks, by whoever started it (`worker join --model`); None: any."""
    announced_blocks: BlockRange | None = None
    """What whoever started it fixed (`worker join --blocks`)."""
    pin: Pin | None = None
    """What an operator has it hold; this goes before what was announced. As in `ClusterState.pins`."""
    assignment: Assignment = field(default_factory=Assignment)
    reported: tuple[SpanStatus, ...] = ()
    """Of spans of the current epoch only."""
    files: frozenset[FileHash] = frozenset()
    heartbeat: Heartbeat | None = None
    block_s: float = 0.0
    """What a token takes in a block, by its heartbeats (`measured`); 0.0 until measured."""
    measured_of: frozenset[tuple[Revision, Quantization | None]] = frozenset()
    """The weights that this was measured of: models, and the fewer bits that they were held in."""
    clock_offset_s: float = 0.0
    """How far its clock is ahead of ours, below 0 behind it; 0.0 while it is right enough to join."""
    right_since_s: float | None = None
    """Set for a while after its clock let nobody in: since when it is right again, if it is so for good."""
    trust: Standing = NEWCOMER
    """How far it is trusted, as of the latest review; worked out of its `TrustRecord`."""

    @property
    def pinned_model(self) -> ModelName | None:
        """The model that its fixed blocks are of; None: nothing is fixed, or the first model there is."""
        return self.announced_model if self.pin is None else self.pin.model

    @property
    def pinned_blocks(self) -> BlockRange | None:
        """What it is to hold whatever else would be better; None: nothing is fixed."""
        return self.announced_blocks if self.pin is None else self.pin.blocks

    @property
    def only_model(self) -> ModelName | None:
        """The model that the planner may choose blocks of for it; None: any. What is pinned is beyond it."""
        return self.announced_model if self.pin is None else None

    @property
    def is_draining(self) -> bool:
        """Whether it takes nothing new."""
        return self.drain_reason is not None

    @property
    def is_routable(self) -> bool:
        """Whether new sessions may go there, as far as the worker itself is concerned."""
        return self.presence == "here" and not (self.is_draining or self.trust.is_barred or self.takes_no_tickets)

    @property
    def takes_no_tickets(self) -> bool:
        """Whether tickets for it have expired by its clock, or will in a moment."""
        return self.clock_offset_s > NO_TICKETS_FROM_S

    @property
    def is_shut_out(self) -> bool:
        """Whether its clock lets nobody in, or did a moment ago and may again."""
        return self.takes_no_tickets or self.right_since_s is not None

    @property
    def counts_as_holder(self) -> bool:
        """Whether what is assigned to it counts as held: it is there, or may be back in a moment."""
        if self.presence in ("lost", "gone") or self.trust.is_barred:
            return False
        return not self.is_draining or self.kept_until_s is not None

    @property
    def can_be_assigned(self) -> bool:
        """Whether it may be given more."""
        return self.is_routable and not self.is_shut_out and self.departure is None and self.device is not None

    @property
    def served(self) -> tuple[SpanAssignment, ...]:
        """The spans that sessions may use, as far as the worker said: those that are ready, and those leaving."""
        return (*self.ready, *self.assignment.leaving)

    @property
    def ready(self) -> tuple[SpanAssignment, ...]:
        """The assigned spans that it said are ready."""
        statuses = ((span, self.status_of(span)) for span in self.assignment.spans)
        return tuple(span for span, status in statuses if status is not None and status.state == "ready")

    def status_of(self, span: SpanAssignment) -> SpanStatus | None:
        """What the worker last said of one of its spans; None if nothing yet."""
        return next((status for status in self.reported if span_in(status) == span), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord:
    """One model that is to be served."""

    name: ModelName
    revision: Revision
    manifest: Manifest
    n_replicas: int = 1
    """How many workers are to hold each block, if there is room."""
    signature: ModelSignature | None = None
    """Who vouches for it; verified, but whether that author is trusted is another question (`signing`)."""
    pinned_ends: bool = False
    """Whether the first and last worker of every route must be ones whose trust an operator pinned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterState:
    """Everything that decisions are made from."""

    settings: PolicySettings = field(default_factory=PolicySettings)
    workers: Mapping[WorkerId, WorkerRecord] = field(default_factory=dict)
    models: Mapping[ModelName, ModelRecord] = field(default_factory=dict)
    """In the order in which they were added."""
    changed_s: float | None = None
    """When something happened that placement has to answer; None if it has."""
    n_changes: int = 0
    """How many such things have happened: two may have the same time."""
    looked_s: float | None = None
    """When silence was judged last; None if never since the start."""
    moving: Moving | None = None
    is_move_asked: bool = False
    """Whether an operator asked for it; without `moving`: before this coordinator was started, and it goes on."""
    improve_s: float | None = None
    """When to look next whether something better exists; None while there is nothing to improve."""
    trust: Mapping[WorkerId, TrustRecord] = field(default_factory=dict)
    """Of workers that anything is known of, also of those that are forgotten otherwise."""
    authors: Authors = field(default_factory=dict)
    """Whose signatures count where models must be signed."""
    n_trust_reviews: int = 0
    """How far the turn has come of looking at what time does to scores."""
    n_moves: int = 0
    """How many times something better was moved to since somebody joined, left, or a model changed."""
    pins: Mapping[WorkerId, Pin] = field(default_factory=dict)
    """What operators have workers hold, also workers that are forgotten otherwise."""
    stored_settings: Mapping[str, str | float | bool] = field(default_factory=dict)
    """Settings that operators changed while a coordinator ran; what was given at the start goes before them."""
    n_staying: dict[ModelName, Sequence[int]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """For each block, how many who stay serve it: `departure` counts once a state, however many it is asked of."""
    all_clocks: list[str] = field(default_factory=list, init=False, repr=False, compare=False)
    """What the clocks of all together say (`worker_clocks`), likewise; empty until it is asked."""

    @property
    def lost_workers(self) -> frozenset[WorkerId]:
        """Workers that are gone, or silent for so long that they are taken to be."""
        return frozenset(name for name, one in self.workers.items() if one.presence in ("lost", "gone"))
