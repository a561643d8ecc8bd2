from __future__ import annotations

from dataclasses import replace

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.policy.live import Look, View, delta, next_view, settled, with_changes
from coordinator.policy.state import ClusterState, WorkerRecord
from protocol.control_messages import Heartbeat
from protocol.dashboard_rest import Entries, LiveDelta, LiveState
from protocol.ids import WorkerId
from tests.support.dashboard import after

NAMES = st.sampled_from([WorkerId(f"w-{i}") for i in range(4)])
SECONDS = st.floats(0.0, 10.0) | st.sampled_from([float("nan"), float("inf"), -1.0])
BEATS = st.builds(
    Heartbeat,
    n_sessions=st.integers(0, 3),
    n_queued=st.integers(0, 3),
    free_kv_bytes=st.integers(0, 10**9),
    decode_s_per_block=SECONDS,
    prefill_s_per_token_block=SECONDS,
    round_trips_s=st.dictionaries(NAMES, SECONDS),
    hop_p50_s=SECONDS,
)
RECORDS = st.builds(
    WorkerRecord,
    worker_id=st.just(WorkerId("")),
    presence=st.sampled_from(["here", "suspect", "lost", "gone"]),
    seen_s=st.floats(0.0, 100.0),
    heartbeat=st.none() | BEATS,
    hostname=st.sampled_from(["a", "b"]),
)
WORKERS = st.dictionaries(NAMES, RECORDS).map(
    lambda found: {name: replace(record, worker_id=name) for name, record in found.items()}
)
LOOKS = st.builds(
    Look,
    state=st.builds(ClusterState, workers=WORKERS),
    now_s=st.floats(100.0, 200.0),
    note_of=st.sampled_from([lambda _: "", lambda worker_id: f"of {worker_id}"]),
    cluster=st.fixed_dictionaries({"a": st.none() | st.integers(), "b": st.integers()}),
    generations=st.dictionaries(st.sampled_from("xyz"), st.fixed_dictionaries({"n": st.none() | st.integers()})),
)


def as_snapshot(view: View, at_s: float) -> LiveState:
    return LiveState(
        at_s=at_s, cluster=view.cluster, models=view.models, workers=view.workers, generations=view.generations
    )


@settings(max_examples=40)
@given(st.lists(LOOKS, min_size=1, max_size=6))
def test_whoever_follows_sees_what_whoever_comes_later_sees(looks: list[Look]) -> None:
    view = next_view(View(), looks[0])
    followed = as_snapshot(view, looks[0].now_s)
    for look in looks[1:]:
        before, view = view, next_view(view, look)
        told = msgspec.json.decode(msgspec.json.encode(delta(before, view, look.now_s)), type=LiveDelta)
        followed = after(followed, told)
        assert view.workers.keys() == look.state.workers.keys()
        for worker_id, record in look.state.workers.items():
            assert view.workers[worker_id]["hostname"] == record.hostname
            n_sessions = 0 if record.heartbeat is None else record.heartbeat.n_sessions
            assert view.workers[worker_id]["n_sessions"] == n_sessions
        fresh = msgspec.json.decode(msgspec.json.encode(as_snapshot(view, look.now_s)), type=LiveState)
        assert msgspec.json.decode(msgspec.json.encode(followed), type=LiveState) == fresh


def test_noise_of_measurements_is_no_change_and_what_happens_is() -> None:
    def at(seconds: float, n_sessions: int, trust: float) -> dict[str, object]:
        return {"hop_p50_s": seconds, "round_trips_s": {"w-1": seconds}, "n_sessions": n_sessions, "trust": trust}

    shown = at(0.010, 1, 0.90)
    assert settled(shown, at(0.0105, 1, 0.90)) == shown
    assert settled(shown, at(0.0105, 1, 0.85))["trust"] == 0.85
    assert settled(shown, at(0.0105, 2, 0.90))["n_sessions"] == 2
    moved = settled(shown, at(0.012, 1, 0.90))
    assert (moved["hop_p50_s"], moved["round_trips_s"]) == (0.012, {"w-1": 0.012})


def test_an_entry_that_is_gone_is_told_apart_from_one_with_nothing_in_it() -> None:
    before: Entries = {"a": {"x": 1}, "b": {"x": 1}}
    assert with_changes(before, {"a": None, "c": {}}) == {"b": {"x": 1}, "c": {}}
