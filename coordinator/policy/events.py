"""What happened, in the past tense: the closed union that `transition.apply` is total over.

Events are made by whoever saw it happen (socket handlers, the admin API, the sweep) and handed to
`Cluster.handle`; nothing here says what follows from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coordinator.policy.authors import Author
from coordinator.policy.improvement import Improvement
from coordinator.policy.pins import Pin
from coordinator.policy.placement import Placed
from coordinator.policy.settings import SettingValue
from coordinator.policy.state import ClusterState
from coordinator.policy.trust_events import TrustEvent
from protocol.author_keys import AuthorKey
from protocol.control_messages import Announce, Heartbeat, SpanReport
from protocol.ids import FileHash, InviteId, ModelName, Revision, WorkerId
from protocol.manifest import Manifest
from protocol.model_signature import ModelSignature


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerJoined:
    """A worker enrolled (or renewed its credentials) over HTTP."""

    worker_id: WorkerId
    invite_id: InviteId | None = None
    """By which invite; None: with the join secret."""
    token_until_s: float = 0.0
    """When the session token ends that it was granted: what tells this enrolment from others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConnected:
    """A control socket was opened and its first message read."""

    worker_id: WorkerId
    announce: Announce


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerNotComing:
    """A worker that had enrolled said that it ends before it has connected."""

    worker_id: WorkerId
    reason: str
    token_until_s: float = 0.0
    """Of the session token that it said so with: which of its starts it speaks of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpansReported:
    """A worker said how its spans are."""

    worker_id: WorkerId
    report: SpanReport


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerBeat:
    """A heartbeat arrived."""

    worker_id: WorkerId
    heartbeat: Heartbeat


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesChanged:
    """A worker said which model files it can serve now, all of them."""

    worker_id: WorkerId
    files: tuple[FileHash, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLeft:
    """A worker said `Leaving`: it drains while its socket is open, and is gone once that closes."""

    worker_id: WorkerId
    reason: str
    serves_on_s: float = 0.0
    """It takes new sessions for so long, or until it is told to drain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketLost:
    """The newest control socket of a worker ended, however."""

    worker_id: WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainAsked:
    """An operator asked for a worker to finish what runs and go."""

    worker_id: WorkerId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainWithdrawn:
    """An operator wants a worker to stay after all that was asked to leave; one that was told to go goes."""

    worker_id: WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRemoved:
    """An operator had a worker forgotten that is gone or lost."""

    worker_id: WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAdded:
    """A model is to be served under this name; the name's earlier revision, if any, is replaced."""

    name: ModelName
    revision: Revision
    manifest: Manifest
    n_replicas: int = 1
    signature: ModelSignature | None = None
    """Verified, and of this revision."""
    pinned_ends: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicasAsked:
    """An operator asked for so many workers to hold each block of a model."""

    name: ModelName
    n_replicas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSigned:
    """An operator brought a signature of a model that is there; verified, it takes the place of an earlier one."""

    name: ModelName
    signature: ModelSignature


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedEndsAsked:
    """An operator said whether all routes of a model begin and end on workers whose trust is pinned."""

    name: ModelName
    is_wanted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorAdded:
    """An operator trusts an author of models."""

    author: Author


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorRemoved:
    """An operator trusts an author no longer."""

    key: AuthorKey


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRemoved:
    """A model is no longer to be served."""

    name: ModelName


@dataclass(frozen=True, slots=True, kw_only=True)
class TimePassed:
    """A second or so went by: who is silent?"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementFound:
    """What to give out was looked for beside everything else, which takes seconds in a large fleet, and found."""

    basis: ClusterState
    """The state that it was found for."""
    placed: Mapping[WorkerId, Placed]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImprovementFound:
    """Something better than what is served was looked for, likewise; perhaps nothing is."""

    basis: ClusterState
    improvement: Improvement
    is_asked: bool = False
    """Whether an operator asked for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignmentPinned:
    """An operator decided what a worker is to hold; with `takes_from` in the pin, that it comes from another."""

    worker_id: WorkerId
    pin: Pin


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignmentUnpinned:
    """An operator had the planner decide again what a worker is to hold."""

    worker_id: WorkerId
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsChanged:
    """An operator changed settings."""

    stored: Mapping[str, SettingValue | None]
    """What is kept of them; None: nothing any more."""
    in_force: Mapping[str, SettingValue]
    """What they are from now on, all of the above."""
    by: str


OperatorEvent = AssignmentPinned | AssignmentUnpinned | SettingsChanged


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveStepEnded:
    """Of a move all who changed last are ready, or they take too long."""


ModelEvent = ModelAdded | ReplicasAsked | ModelSigned | PinnedEndsAsked | ModelRemoved
WorkerEvent = (
    SpansReported
    | WorkerBeat
    | FilesChanged
    | WorkerLeft
    | WorkerNotComing
    | SocketLost
    | DrainAsked
    | DrainWithdrawn
    | WorkerRemoved
)
"""Events that mean nothing of a worker that isn't known."""

Found = PlacementFound | ImprovementFound | MoveStepEnded
"""What was looked for beside everything else (`looking`): what happened meanwhile may have made it useless."""

Event = (
    WorkerJoined
    | WorkerConnected
    | WorkerEvent
    | ModelEvent
    | AuthorAdded
    | AuthorRemoved
    | TimePassed
    | Found
    | TrustEvent
    | OperatorEvent
)
