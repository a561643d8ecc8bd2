"""What is stored of the cluster, as the repository loads it, and the state that a coordinator begins with.

Times are seconds since 1970, UTC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from coordinator.policy.authors import Author
from coordinator.policy.effects import WorkerStatus
from coordinator.policy.pins import Pin
from coordinator.policy.settings import SettingValue
from coordinator.policy.state import Assignment, ClusterState, Departure, ModelRecord, PolicySettings, WorkerRecord
from coordinator.policy.trust import NEWCOMER, TrustRecord, standing
from coordinator.policy.under_way import Moving
from protocol.control_messages import DeviceReport, SpanAssignment
from protocol.ids import WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWorker:
    """A worker's row and its assignment, as `SaveWorker` and `SaveAssignment` left them."""

    worker_id: WorkerId
    status: WorkerStatus
    hostname: str
    url: str
    device: DeviceReport | None
    seen_s: float
    starts_by_s: float | None = None
    epoch: int = 0
    spans: tuple[SpanAssignment, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredState:
    """What `Repository.load_state` returns: all workers, and the models in the order in which they were added."""

    workers: tuple[StoredWorker, ...] = ()
    models: tuple[ModelRecord, ...] = ()
    trust: Mapping[WorkerId, TrustRecord] = field(default_factory=dict)
    authors: tuple[Author, ...] = ()
    pins: Mapping[WorkerId, Pin] = field(default_factory=dict)
    settings: Mapping[str, SettingValue] = field(default_factory=dict)
    """Settings that were changed while a coordinator ran, by name."""
    is_move_asked: bool = False
    """Whether an operator asked for blocks to be placed anew, and that wasn't over."""
    moving: Moving | None = None
    """What was being moved."""
    moving_damage: str = ""
    """Why that can't be read, if it was stored and can't."""


_ASKED_BEFORE = "an operator asked for it before the coordinator was restarted"


def restored(stored: StoredState, settings: PolicySettings, now_s: float) -> ClusterState:
    """The state after a start. Workers keep their blocks while they have `lost_after_s` from now to connect.

    Those that were starting have what was left of their time, if that is more.
    """
    models = {model.name: model for model in stored.models}
    workers = {
        worker.worker_id: WorkerRecord(
            worker_id=worker.worker_id,
            presence="gone" if worker.status == "gone" else "expected",
            seen_s=worker.seen_s if worker.status == "gone" else now_s,
            starts_by_s=_starts_by_s(worker, settings, now_s),
            drain_reason=_ASKED_BEFORE if worker.status == "draining" else None,
            departure=(
                Departure(reason=_ASKED_BEFORE, by_s=now_s + settings.longest_departure_s)
                if worker.status == "departing"
                else None
            ),
            hostname=worker.hostname,
            url=worker.url,
            device=worker.device,
            assignment=Assignment(
                epoch=worker.epoch, spans=worker.spans, reason=worker.reason, unwanted_bytes=None
            ),
            trust=standing(stored.trust[worker.worker_id], now_s) if worker.worker_id in stored.trust else NEWCOMER,
            pin=stored.pins.get(worker.worker_id),
        )
        for worker in stored.workers
    }
    return ClusterState(
        settings=settings,
        workers=workers,
        models=models,
        changed_s=now_s,
        looked_s=now_s,
        trust=dict(stored.trust),
        authors={author.key: author for author in stored.authors},
        pins=dict(stored.pins),
        stored_settings=dict(stored.settings),
        is_move_asked=stored.is_move_asked,
        moving=None if stored.moving is None else _cut(stored.moving, now_s),
    )


def _starts_by_s(worker: StoredWorker, settings: PolicySettings, now_s: float) -> float | None:
    """Also where it is over: else who enrols again and again has it anew. The clock may have been set since."""
    if worker.starts_by_s is None or worker.status == "gone":
        return None
    return min(worker.starts_by_s, now_s + max(settings.longest_start_s, settings.lost_after_s))


def _cut(moving: Moving, now_s: float) -> Moving:
    """A move as a coordinator finds it that was started now. One of the future is as doubtful as an old one."""
    return replace(moving, step_s=now_s, is_cut=True, away_s=abs(now_s - moving.step_s))
