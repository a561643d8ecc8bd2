from __future__ import annotations

from dataclasses import replace

import msgspec

from coordinator.policy.events import ModelRemoved, WorkerBeat
from coordinator.policy.ready_segments import ReadySegments
from coordinator.policy.sizing import decode_times
from protocol.ids import BlockRange, ModelName, WorkerId
from tests.coordinator.policy.fleet import Fleet, added, heartbeat

M = ModelName("m")


def test_what_is_kept_is_what_would_be_found_anew() -> None:
    fleet, known = Fleet(), ReadySegments()
    fleet.do(added(n_blocks=4, end_parameters=0))
    for name in "ab":
        fleet.join(name, pinned_blocks=BlockRange(0, 4))
    fleet.wait(2)
    fleet.all_ready()
    first = known.of(fleet.state, fleet.state.models[M])
    assert [segment.worker_id for segment in first] == ["a", "b"]

    fleet.do(WorkerBeat(worker_id=WorkerId("a"), heartbeat=heartbeat(decode_s_per_block=0.5, n_sessions=2)))
    second = known.of(fleet.state, fleet.state.models[M])
    assert second == ReadySegments().of(fleet.state, fleet.state.models[M])
    assert second[0].seconds_per_block == 0.75, "two sessions make it half as slow again"
    assert second[1] is first[1], "nothing was worked out for a worker that nothing was heard of"


def test_nothing_is_kept_of_a_model_that_was_replaced_or_removed() -> None:
    fleet, known = Fleet(), ReadySegments()
    fleet.do(added(n_blocks=4))
    fleet.join("a", pinned_blocks=BlockRange(0, 2))
    fleet.wait(2)
    fleet.all_ready()
    assert len(known.of(fleet.state, fleet.state.models[M])) == 1

    fleet.do(ModelRemoved(name=M))
    fleet.do(added("n", n_blocks=4))
    assert known.of(fleet.state, fleet.state.models[ModelName("n")]) == []
    fleet.do(added(n_blocks=5))
    assert known.of(fleet.state, fleet.state.models[M]) == []


def test_a_span_in_fewer_bits_is_estimated_in_those() -> None:
    fleet = Fleet()
    fleet.do(added(n_blocks=4))
    fleet.join("a", pinned_blocks=BlockRange(0, 4))
    fleet.wait(2)
    fleet.all_ready()
    worker = fleet.state.workers[WorkerId("a")]
    (span,) = worker.assignment.spans
    fewer = replace(worker.assignment, spans=(msgspec.structs.replace(span, quantization="int4"),))
    worker = replace(worker, assignment=fewer)
    fleet.state = replace(fleet.state, workers={worker.worker_id: worker})
    fleet.all_ready()
    worker, model = fleet.state.workers[worker.worker_id], fleet.state.models[M]
    (segment,) = ReadySegments().of(fleet.state, model)

    times = decode_times(worker, model.manifest, quantization="int4")
    assert (segment.seconds_per_block, segment.after_s) == (times.block_s, times.after_s)
    assert times.block_s < decode_times(worker, model.manifest).block_s


def test_of_parts_of_a_model_only_what_differs_is_worked_out() -> None:
    fleet, known = Fleet(), ReadySegments()
    fleet.do(added(n_blocks=8))
    fleet.join("a", pinned_blocks=BlockRange(0, 8))
    fleet.wait(2)
    fleet.all_ready()
    model = fleet.state.models[M]
    (whole,) = known.of(fleet.state, model)

    for private in (1, 2, 3):
        (part,) = known.of(fleet.state, model, BlockRange(private, 8 - private))
        assert part.link_s is whole.link_s
        assert known.of(fleet.state, model, BlockRange(private, 8 - private))[0] is part
