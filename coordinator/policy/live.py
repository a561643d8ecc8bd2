"""The cluster as the dashboard shows it, and what has changed in it. Pure.

Measured numbers change with every heartbeat without saying anything new: what was shown stays until the number has
moved by more than `NOISE`, so that what is sent of a thousand workers is what happens to them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from coordinator.policy.state import ClusterState, WorkerRecord
from coordinator.policy.views import explained_worker, model_info
from protocol.dashboard_rest import Entries, Fields, LiveDelta
from protocol.ids import WorkerId

NOISE = 0.1
"""A number that has moved by a smaller share than this is shown as it was."""
MEASURED = frozenset({"decode_s_per_block", "hop_p50_s", "hop_p99_s", "round_trips_s", "links", "free_kv_bytes"})
MAX_ANEW = 200
"""Workers that changed and are shown anew at one look; the others follow at the next."""
LEAST_IN_TURN = 50
LOOKS_FOR_ALL = 40
LOOKS_FOR_MODELS = 8
BEAT_FIELDS = frozenset({"seen_s", "heartbeat", "block_s", "measured_of", "files"})
"""Of a worker's record: what heartbeats change, and nothing follows from for its state."""
_OTHER_FIELDS = tuple(name for name in WorkerRecord.__slots__ if name not in BEAT_FIELDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Everything at one moment, as it is to be shown."""

    state: ClusterState
    now_s: float
    note_of: Callable[[WorkerId], str]
    """What speaks against a worker beside what the state says."""
    cluster: Fields
    generations: Entries


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What is shown. Entries are never changed in place: one that is the same object hasn't changed."""

    n_looks: int = 0
    state: ClusterState = field(default_factory=ClusterState)
    records: Mapping[WorkerId, WorkerRecord] = field(default_factory=dict)
    """Of the workers, as they were when their entries were made."""
    cluster: Fields = field(default_factory=dict)
    models: Entries = field(default_factory=dict)
    workers: Entries = field(default_factory=dict)
    generations: Entries = field(default_factory=dict)


def next_view(before: View, look: Look) -> View:
    """What is shown after another look: made anew as far as it has changed, and a part of the rest in turn."""
    state, now_s = look.state, look.now_s
    changed = _changed(before, state)
    anew = _in_turn(list(state.workers), before.n_looks).union(changed[:MAX_ANEW])
    late = frozenset(changed) - anew
    workers: Entries = {}
    for worker_id, record in state.workers.items():
        old = before.workers.get(worker_id, {})
        if not old or worker_id in anew:
            new = live_worker(state, worker_id, now_s, look.note_of(worker_id))
        elif worker_id in late or before.records[worker_id] is record:
            workers[worker_id] = old
            continue
        else:
            new = {**old, **beat_fields(record)}
        new = settled(old, new)
        workers[worker_id] = old if new == old else new
    is_time = before.n_looks % LOOKS_FOR_MODELS == 0
    is_same = state.models is before.state.models and state.workers.keys() == before.workers.keys()
    is_for_models = changed or is_time or not is_same
    models = live_models(state, now_s) if is_for_models else before.models
    return View(
        n_looks=before.n_looks + 1,
        state=state,
        # what comes late is found changed again the next time
        records={name: before.records[name] if name in late else record for name, record in state.workers.items()},
        cluster=look.cluster
        | {"n_workers": len(workers), "n_workers_ready": _n_ready(workers), "n_models_ready": _n_ready(models)},
        models=models,
        workers=workers,
        generations=look.generations,
    )


def _changed(before: View, state: ClusterState) -> list[WorkerId]:
    """Workers of whom more came than heartbeats since they were shown; new ones aren't among them."""
    return [
        worker_id
        for worker_id, record in state.workers.items()
        if (seen := before.records.get(worker_id, record)) is not record and not has_only_beaten(seen, record)
    ]


def _n_ready(entries: Entries) -> int:
    return sum(fields["state"] == "ready" for fields in entries.values())


def delta(before: View, after: View, at_s: float) -> LiveDelta:
    """What makes one view of the other."""
    return LiveDelta(
        at_s=at_s,
        cluster=changed_fields(before.cluster, after.cluster),
        models=changes(before.models, after.models),
        workers=changes(before.workers, after.workers),
        generations=changes(before.generations, after.generations),
    )


def live_models(state: ClusterState, now_s: float) -> Entries:
    """All that is shown of every model."""
    return {name: msgspec.to_builtins(model_info(state, name, now_s)) for name in state.models}


def live_worker(state: ClusterState, worker_id: WorkerId, now_s: float, note: str) -> Fields:
    """All that is shown of one worker, as `WorkerInfo`; `note` speaks against it."""
    info = explained_worker(state, worker_id, now_s, note)
    fields: Fields = msgspec.to_builtins(info)
    del fields["last_seen_s_ago"]
    fields["decode_s_per_block"] = rounded(info.decode_s_per_block)
    fields["trust"] = round(info.trust, 2)
    return fields | beat_fields(state.workers[worker_id])


def beat_fields(worker: WorkerRecord) -> Fields:
    """The part of `live_worker` that heartbeats change."""
    beat, is_heard = worker.heartbeat, worker.presence == "here"
    return {
        "silent_since_s": None if is_heard else round(worker.seen_s),
        "n_sessions": beat.n_sessions if beat is not None else 0,
        "n_queued": beat.n_queued if beat is not None else 0,
        "free_kv_bytes": int(rounded(beat.free_kv_bytes)) if beat is not None else 0,
        "decode_s_per_block": rounded(beat.decode_s_per_block) if beat is not None else 0.0,
        "hop_p50_s": rounded(beat.hop_p50_s) if beat is not None else 0.0,
        "hop_p99_s": rounded(beat.hop_p99_s) if beat is not None else 0.0,
        "round_trips_s": {to: rounded(s) for to, s in beat.round_trips_s.items()} if beat is not None else {},
        "links": {to: {"bytes_per_s": rounded(link.bytes_per_s)} for to, link in beat.links.items()}
        if beat is not None
        else {},
    }


def has_only_beaten(before: WorkerRecord, after: WorkerRecord) -> bool:
    """Whether nothing but heartbeats came between the two records of one worker."""
    return all(getattr(before, name) is getattr(after, name) for name in _OTHER_FIELDS)


def settled(before: Fields, after: Fields) -> Fields:
    """The fields `after`, with measured numbers that are as good as before left as they were."""
    return {name: _settled(before.get(name), value) if name in MEASURED else value for name, value in after.items()}


def _settled(before: Any, after: Any) -> Any:
    if isinstance(before, float | int) and isinstance(after, float | int):
        return before if abs(after - before) <= NOISE * abs(before) else after
    if isinstance(before, dict) and isinstance(after, dict):
        return {key: _settled(before.get(key), value) for key, value in after.items()}
    return after


def _in_turn(worker_ids: Sequence[WorkerId], n_looks: int) -> frozenset[WorkerId]:
    """Whose words are made anew though nothing of them changed: time passes, and they speak of others too."""
    n_each = max(LEAST_IN_TURN, len(worker_ids) // LOOKS_FOR_ALL)
    start = n_looks * n_each % max(1, len(worker_ids))
    return frozenset((*worker_ids, *worker_ids)[start : start + n_each])


def changed_fields(before: Fields, after: Fields) -> Fields:
    """Those fields of an entry that are to be put in place of the old ones."""
    return {key: value for key, value in after.items() if key not in before or before[key] != value}


def changes(before: Mapping[str, Fields], after: Mapping[str, Fields]) -> dict[str, Fields | None]:
    """What makes the entries `after` of those `before`: changed fields, whole new ones, None for those gone."""
    found: dict[str, Fields | None] = {name: None for name in before if name not in after}
    for name, fields in after.items():
        if name not in before:
            found[name] = fields
        elif fields is not before[name] and (changed := changed_fields(before[name], fields)):
            found[name] = changed
    return found


def with_changes(before: Mapping[str, Fields], found: Mapping[str, Fields | None]) -> Entries:
    """The entries that `changes` was made for: what a reader comes to."""
    merged = {name: {**before.get(name, {}), **fields} for name, fields in found.items() if fields is not None}
    return {name: fields for name, fields in {**before, **merged}.items() if found.get(name, fields) is not None}


def rounded(value: float) -> float:
    """To three digits; 0.0 for what is no number: a worker may say anything."""
    return float(f"{value:.3g}") if math.isfinite(value) else 0.0
