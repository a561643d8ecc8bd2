from __future__ import annotations

import pytest

from coordinator.policy.coverage import gaps, runs
from coordinator.policy.events import WorkerBeat
from coordinator.policy.sizing import BLOCK_START_S, HEAD_SHARE, capacity_bytes, decode_times, end_bytes, span_bytes
from protocol.ids import BlockRange, WorkerId
from tests.coordinator.policy.fleet import Fleet, announce, heartbeat, manifest


def test_a_span_is_its_blocks_its_cache_and_the_ends_it_owns() -> None:
    model = manifest(8)

    assert span_bytes(model, BlockRange(1, 3), "float32", 50) == 4 * 2 * (1000 + 50)
    assert span_bytes(model, BlockRange(0, 3), "bfloat16", 50) == 2 * (500 + 3 * 1050)
    assert span_bytes(model, BlockRange(1, 3), "int8", 50) == 2 * (1000 * 10 / 8 + 50 * 2), "caches as computed"
    assert span_bytes(model, BlockRange(1, 3), "float32", 64, "int8") == 2 * (4 * 1000 + 64 * 34 / 32)
    assert span_bytes(model, BlockRange(0, 8), "float32", 10_000) == 4 * (1000 + 8 * 1100), "up to the context"


def test_tied_ends_count_once_on_one_worker() -> None:
    assert end_bytes(manifest(2), "float32") == (2000, 2000, 4000)
    assert end_bytes(manifest(2, tied=True), "float32") == (2000, 2000, 2000)


@pytest.mark.parametrize(
    ("memory", "capacity"), [(0, 0), (1000, 900), (10**9, 10**9 - 64 * 2**20), (10**11, 95 * 10**9)]
)
def test_some_memory_is_left_for_caches_and_activations(memory: int, capacity: int) -> None:
    assert capacity_bytes(announce("a", memory=memory).device) == capacity


@pytest.mark.parametrize("measured", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_what_cant_have_been_measured_is_estimated(measured: float) -> None:
    fleet = Fleet()
    fleet.join("a")
    fleet.do(WorkerBeat(worker_id=WorkerId("a"), heartbeat=heartbeat(decode_s_per_block=measured)))

    worker = fleet.state.workers[WorkerId("a")]
    assert decode_times(worker, manifest()).block_s == pytest.approx(4000 / 1e6 + 2000 / 1e6)


def test_what_was_measured_with_other_models_says_nothing_of_this_one() -> None:
    fleet = Fleet()
    fleet.join("a")
    fleet.do(WorkerBeat(worker_id=WorkerId("a"), heartbeat=heartbeat(decode_s_per_block=0.5)))

    worker = fleet.state.workers[WorkerId("a")]
    assert decode_times(worker, manifest()).block_s == 0.5
    assert decode_times(worker, manifest(), has_other_models=True).block_s == pytest.approx(0.006)


def test_the_head_takes_as_many_blocks_time_as_its_weights_say() -> None:
    fleet = Fleet()
    fleet.join("a")
    fleet.do(WorkerBeat(worker_id=WorkerId("a"), heartbeat=heartbeat(decode_s_per_block=0.5)))

    times = decode_times(fleet.state.workers[WorkerId("a")], manifest(8, end_parameters=4000))
    assert times.after_s == pytest.approx(HEAD_SHARE * 0.5 * 0.024 / (0.006 + BLOCK_START_S))
    assert times.of_range(BlockRange(0, 4), 8) == pytest.approx(4 * 0.5)
    assert times.of_range(BlockRange(4, 8), 8) == pytest.approx(4 * 0.5 + times.after_s)


def test_runs_and_gaps_cover_every_block_once() -> None:
    assert runs([1, 1, 0, 2]) == [(BlockRange(0, 2), 1), (BlockRange(2, 3), 0), (BlockRange(3, 4), 2)]
    assert gaps([0, 1, 0, 0]) == (BlockRange(0, 1), BlockRange(2, 4))
    assert gaps([1]) == ()
