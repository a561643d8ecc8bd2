from __future__ import annotations

import math

from msgspec.structs import replace

from coordinator.policy.events import FilesChanged, SpansReported, WorkerBeat, WorkerConnected
from coordinator.policy.sound import MAX_LABEL
from coordinator.policy.statuses import status_as
from protocol.control_messages import LinkReport, SpanReport
from protocol.ids import FileHash, ModelName, WorkerId
from tests.coordinator.policy.fleet import announce, file_hash, heartbeat, ready_pair

A, B = WorkerId("a"), WorkerId("b")
LONG = "x" * 1_000_000


def kept_of(value: object) -> int:
    return len(repr(value))


def test_nothing_endless_is_kept_of_what_a_worker_announces() -> None:
    fleet = ready_pair()
    said = announce(
        "a",
        device={"device": LONG, "quantizations": ("int8",) * 100_000},
        pinned_model=ModelName(LONG),
    )
    fleet.do(WorkerConnected(worker_id=A, announce=said))
    worker = fleet.state.workers[A]
    assert worker.device is not None
    assert worker.device.device == LONG[:MAX_LABEL]
    assert kept_of(worker) < 10_000


def test_files_are_hashes_and_nothing_else() -> None:
    fleet = ready_pair()
    fleet.do(FilesChanged(worker_id=A, files=(file_hash("one"), FileHash(LONG), FileHash("no hash"))))
    assert fleet.state.workers[A].files == {file_hash("one")}


def test_a_heartbeat_speaks_of_those_who_are_known() -> None:
    fleet = ready_pair()
    nobodys = {WorkerId(f"{LONG}{i}"): 1.0 for i in range(3)}
    link = LinkReport(n_bytes_sent=1)
    said = heartbeat(
        n_sessions=7,
        round_trips_s={B: 0.5, **nobodys},
        links={B: link, **dict.fromkeys(nobodys, link)},
        longest_sessions={ModelName("m"): 9, ModelName(LONG): 9},
    )
    fleet.do(WorkerBeat(worker_id=A, heartbeat=said))
    kept = fleet.state.workers[A].heartbeat
    assert kept == heartbeat(n_sessions=7, round_trips_s={B: 0.5}, links={B: link}, longest_sessions={"m": 9})


def test_words_about_spans_are_cut_and_progress_is_a_share() -> None:
    fleet = ready_pair()
    assignment = fleet.state.workers[A].assignment
    status = status_as(assignment.spans[0], "failed", LONG)
    for progress, kept in ((math.nan, 0.0), (math.inf, 0.0), (-1.0, 0.0), (7.0, 1.0)):
        said = replace(status, note=LONG, progress=progress, kv_bytes_by_block=(1, 2))
        report = SpanReport(epoch=assignment.epoch, spans=(said,))
        fleet.do(SpansReported(worker_id=A, report=report))
        (shown,) = fleet.state.workers[A].reported
        assert (shown.progress, len(shown.reason), len(shown.note)) == (kept, 1000, 1000)
        assert shown.kv_bytes_by_block == (), "the span has more blocks"
