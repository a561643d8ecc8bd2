from __future__ import annotations

from collections.abc import ValuesView
from dataclasses import replace

import pytest

from coordinator.policy.events import (
    SocketLost,
    SpansReported,
    WorkerBeat,
    WorkerConnected,
    WorkerJoined,
    WorkerLeft,
)
from coordinator.policy.missing import missing_blocks
from coordinator.policy.standing import standing, state_word
from coordinator.policy.state import Departure, WorkerRecord
from coordinator.policy.views import model_info, worker_info
from protocol.cluster_rest import WorkerInfo
from protocol.codec import decode_json, encode_json
from protocol.control_messages import SpanReport, SpanStatus
from protocol.ids import BlockRange, ModelName, WorkerId
from tests.coordinator.policy.fleet import Fleet, added, announce, heartbeat, memory_for

A = WorkerId("a")
M = ModelName("m")


def test_blocks_that_would_fit_but_only_on_a_worker_that_failed_are_explained() -> None:
    fleet = Fleet()
    fleet.do(added())
    fleet.join("a")
    fleet.wait(2)
    fleet.report("a", "failed", "disk full")
    fleet.wait(2)

    info = model_info(fleet.state, M, fleet.now_s)
    assert info.state == "incomplete"
    assert info.reason == "on a (host-a), blocks 0:8 of m failed: disk full"


def test_room_that_only_a_pinned_or_occupied_worker_has_is_not_counted_as_missing_memory() -> None:
    fleet = Fleet()
    fleet.do(added(n_blocks=8))
    fleet.join("a", pinned_blocks=BlockRange(2, 4))
    fleet.join("b", memory=memory_for(2, ends=1))
    fleet.wait(2)
    assert fleet.blocks() == {"a": "2:4", "b": "0:2"}

    assert "4:8 of m are held by nobody" in model_info(fleet.state, M, fleet.now_s).reason


def test_a_missing_model_end_that_fits_nowhere_in_one_piece_is_explained() -> None:
    fleet = Fleet()
    fleet.do(added(n_blocks=2, end_parameters=5000))
    for name in "abc":
        fleet.join(name, memory=memory_for(1, ends=9))
    fleet.wait(2)

    reason = model_info(fleet.state, M, fleet.now_s).reason
    assert "too little each" in reason
    assert "`worker join` on another machine" in reason


def test_a_worker_whose_socket_closed_is_said_to_be_so() -> None:
    fleet = Fleet()
    fleet.join("a")
    fleet.do(SocketLost(worker_id=A))

    info = worker_info(fleet.state, A, fleet.now_s)
    assert info.state == "suspect"
    assert "its control socket closed; not heard of for 0 s" in info.reason


class Unseen(dict[WorkerId, WorkerRecord]):
    """Workers that aren't to be looked through."""

    def values(self) -> ValuesView[WorkerRecord]:
        raise AssertionError("all workers were looked at for one of them")


def test_a_workers_state_is_known_without_a_look_at_all_others_as_its_reason_is_not() -> None:
    """So 1,000 workers are counted by state in a moment, though many of them leave or are quarantined."""
    fleet = Fleet()
    fleet.do(added())
    fleet.join("a")
    fleet.wait(2)
    fleet.report("a", "ready", "")
    worker = fleet.state.workers[A]
    for one, word in (
        (worker, "ready"),
        (replace(worker, trust=replace(worker.trust, level="quarantined")), "quarantined"),
        (replace(worker, departure=Departure(reason="leaves", by_s=fleet.now_s)), "draining"),
    ):
        state = replace(fleet.state, workers=Unseen({A: one}))
        assert state_word(state, one, fleet.now_s) == word
        if word != "ready":
            with pytest.raises(AssertionError, match="all workers"):
                standing(state, A, fleet.now_s)


class Counted(dict[WorkerId, WorkerRecord]):
    """Workers of whom it is counted how often all are looked through."""

    n_looks = 0

    def values(self) -> ValuesView[WorkerRecord]:
        self.n_looks += 1
        return super().values()


def test_the_others_are_looked_through_once_for_all_who_are_quarantined() -> None:
    """So a status of 1,000 workers takes no longer if a hundred of them are."""
    fleet = Fleet()
    fleet.do(added())
    for name in "abcd":
        fleet.join(name, pinned_blocks=BlockRange(0, 8))
    fleet.wait(2)
    fleet.all_ready()
    barred = replace(fleet.state.workers[A].trust, level="quarantined")
    workers = Counted({name: replace(one, trust=barred) for name, one in fleet.state.workers.items()})
    state = replace(fleet.state, workers=workers)
    for name in workers:
        assert "aren't served until those have loaded them" in standing(state, name, fleet.now_s)[1]
    assert workers.n_looks == 1
    released = Counted(workers | {A: fleet.state.workers[A]})
    assert "others serve its blocks" in standing(replace(state, workers=released), WorkerId("b"), fleet.now_s)[1]


def test_a_worker_that_claims_two_ranges_of_one_model_is_not_believed() -> None:
    fleet = Fleet()
    model = added()
    fleet.do(model)
    spans = tuple(
        SpanStatus(model=M, revision=model.revision, blocks=blocks, state="ready", reason="")
        for blocks in (BlockRange(0, 3), BlockRange(2, 5))
    )

    fleet.do(WorkerConnected(worker_id=A, announce=announce("a", epoch=3, spans=spans)))

    assert fleet.blocks() == {}
    assert fleet.state.workers[A].assignment.epoch == 4


def test_many_missing_runs_are_summed_up() -> None:
    fleet = Fleet()
    fleet.do(added(n_blocks=12))
    for i in range(6):
        fleet.join(f"w{i}", pinned_blocks=BlockRange(2 * i, 2 * i + 1), memory=10)
    fleet.wait(2)

    assert "more such" in model_info(fleet.state, M, fleet.now_s).reason


def test_a_replica_whose_ends_dont_fit_takes_what_is_between() -> None:
    fleet = Fleet()
    fleet.do(added(n_blocks=4, end_parameters=5000))
    fleet.join("a")
    fleet.wait(2)
    fleet.join("small", memory=memory_for(2))
    fleet.join("after", memory=memory_for(1))
    fleet.wait(2)

    assert fleet.blocks() == {"a": "0:4", "after": "1:2", "small": "2:3"}


def test_what_a_worker_says_of_itself_is_shown_as_far_as_it_can_be() -> None:
    fleet = Fleet()
    fleet.do(added())
    worker_id = fleet.join("a")
    fleet.wait(2)
    span = fleet.state.workers[worker_id].assignment.spans[0]
    status = SpanStatus(
        model=span.model,
        revision=span.revision,
        blocks=span.blocks,
        state="loading",
        reason="x" * 10**6,
        progress=float("nan"),
    )
    fleet.do(SpansReported(worker_id=worker_id, report=SpanReport(epoch=1, spans=(status,))))
    fleet.do(WorkerBeat(worker_id=worker_id, heartbeat=heartbeat(decode_s_per_block=float("inf"))))

    info = worker_info(fleet.state, worker_id, fleet.now_s)
    assert decode_json(encode_json(info), WorkerInfo) == info
    assert len(encode_json(info)) < 10_000


def test_blocks_are_on_their_way_while_somebody_starts_or_they_are_about_to_be_given_out() -> None:
    fleet = Fleet()
    fleet.do(added())
    fleet.wait(2)
    nobody = missing_blocks(fleet.state, fleet.state.models[M])
    assert nobody is not None
    assert not nobody.is_on_its_way
    assert nobody.message.endswith("no worker is connected; run `worker join` on a machine")

    fleet.do(WorkerJoined(worker_id=A))
    starting = missing_blocks(fleet.state, fleet.state.models[M])
    assert starting is not None
    assert starting.is_on_its_way
    assert starting.message == "blocks 0:8 of m are held by nobody; a may get them: enrolled, not connected yet"

    fleet.do(WorkerConnected(worker_id=A, announce=announce("a", memory=10)))
    unsettled = missing_blocks(fleet.state, fleet.state.models[M])
    assert unsettled is not None
    assert unsettled.is_on_its_way
    fleet.wait(2)
    too_small = missing_blocks(fleet.state, fleet.state.models[M])
    assert too_small is not None
    assert not too_small.is_on_its_way


def test_a_model_has_hope_while_its_only_worker_may_be_started_again_and_no_longer() -> None:
    fleet = Fleet()
    fleet.do(added())
    fleet.join("a")
    fleet.wait(2)
    fleet.all_ready()
    fleet.do(WorkerLeft(worker_id=A, reason="the worker was stopped"))
    fleet.do(SocketLost(worker_id=A))
    stopped = missing_blocks(fleet.state, fleet.state.models[M])
    assert stopped is not None
    assert stopped.is_on_its_way
    assert "start it again" in stopped.message
    fleet.pass_time(fleet.state.settings.lost_after_s + 3.0)
    gone = missing_blocks(fleet.state, fleet.state.models[M])
    assert gone is not None
    assert not gone.is_on_its_way
