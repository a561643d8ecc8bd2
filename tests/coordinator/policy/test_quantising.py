from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.cli_output import console, plan_table, worker_table
from coordinator.policy.coverage import counts
from coordinator.policy.events import SocketLost
from coordinator.policy.quantising import loses_bits
from coordinator.policy.sizing import KV_TARGETS, capacity_bytes, span_bytes, spans_bytes
from coordinator.policy.state import ClusterState, PolicySettings
from coordinator.policy.views import model_info, plan_info, worker_info
from protocol.control_messages import SpanAssignment
from protocol.ids import BlockRange, ModelName, WorkerId
from protocol.messages import Precision, Quantization
from tests.coordinator.policy.fleet import OPEN, Fleet, added, announce, memory_for

M = ModelName("m")
N_BLOCKS = 6
FIXED = {"quantizations": ("int8", "int4")}
CAN_ONLY_FLOAT: dict[str, object] = {"quantizations": (), "is_precision_open": True}


@dataclass(frozen=True)
class Machine:
    memory: int
    precision: Precision
    device: dict[str, object]


machines = st.builds(
    Machine,
    st.integers(100, memory_for(N_BLOCKS, ends=2)),
    st.sampled_from(["float32", "bfloat16"]),
    st.sampled_from([OPEN, OPEN, FIXED, CAN_ONLY_FLOAT]),
)


def fleet_of(found: list[Machine], placement: str = "balance", **changes: object) -> Fleet:
    """Machines a, b, ... with a model of `N_BLOCKS` blocks, placed."""
    fleet = Fleet(ClusterState(settings=PolicySettings(placement=placement, **changes)))  # type: ignore[arg-type]
    fleet.do(added(n_blocks=N_BLOCKS))
    for name, machine in zip("abcdef", found, strict=False):
        fleet.join(name, memory=machine.memory, device={"precision": machine.precision, **machine.device})
    fleet.wait(2)
    return fleet


def quantizations(fleet: Fleet) -> dict[str, Quantization | None]:
    return {
        worker_id: span.quantization
        for worker_id, worker in fleet.state.workers.items()
        for span in worker.assignment.spans
    }


def is_covered(fleet: Fleet) -> bool:
    held = (span.blocks for worker in fleet.state.workers.values() for span in worker.assignment.spans)
    return min(counts(held, N_BLOCKS)) > 0


@settings(max_examples=80)
@given(st.lists(machines, min_size=1, max_size=4), st.sampled_from(["balance", "one-stream", "spread"]))
def test_fewer_bits_are_held_only_where_nothing_else_fits(found: list[Machine], placement: str) -> None:
    fleet, without = fleet_of(found, placement), fleet_of(found, placement, auto_quantize=False)
    given_bits = quantizations(fleet)
    assert not any(quantizations(without).values())
    if is_covered(without):
        assert fleet.blocks() == without.blocks()
        assert not any(given_bits.values()), "it fits without"
    for worker_id, quantization in given_bits.items():
        worker = fleet.state.workers[WorkerId(worker_id)]
        device, spans = worker.device, worker.assignment.spans
        assert device is not None
        room = capacity_bytes(device)
        assert spans_bytes(fleet.state, spans, device.held_as, KV_TARGETS[-1]) <= room
        if quantization is not None:
            assert device.is_precision_open
            assert quantization in device.quantizations
            manifest = fleet.state.models[M].manifest
            wider = "int8" if quantization == "int4" else device.held_as
            assert span_bytes(manifest, spans[0].blocks, wider, KV_TARGETS[-1]) > room, "it needs so few bits"
            assert is_covered(fleet), "and it helps"


@settings(max_examples=40)
@given(st.lists(machines, min_size=1, max_size=4))
def test_what_fits_in_4_bits_is_held(found: list[Machine]) -> None:
    smallest = [
        replace(m, precision="bfloat16", device={"quantization": "int4"}) if m.device is OPEN else m for m in found
    ]
    assert is_covered(fleet_of(found)) == is_covered(fleet_of(smallest))


@settings(max_examples=30)
@given(st.lists(machines, min_size=1, max_size=3))
def test_more_memory_moves_nothing_back(found: list[Machine]) -> None:
    fleet = fleet_of(found)
    if not is_covered(fleet):
        return
    fleet.all_ready()
    before, blocks = quantizations(fleet), fleet.blocks()
    fleet.join("large", memory=10**9, device=OPEN)
    fleet.wait(3)
    fleet.all_ready()
    fleet.do(SocketLost(worker_id=WorkerId("large")))
    fleet.wait(30)
    after = quantizations(fleet)
    assert {name: after[name] for name in before} == before
    assert {name: fleet.blocks()[name] for name in blocks} == blocks


def test_as_few_workers_as_it_takes_and_8_bits_before_4() -> None:
    pair = [Machine(memory_for(4, ends=1), "float32", OPEN), Machine(memory_for(2, ends=1), "float32", OPEN)]
    assert quantizations(fleet_of(pair)) == {"a": None, "b": None}
    narrower = [replace(pair[0], memory=memory_for(3, ends=1)), pair[1]]
    assert quantizations(fleet_of(narrower, "spread")) == {"a": "int8", "b": None}
    small = [Machine(memory_for(1, ends=1), "float32", OPEN)] * 2
    assert quantizations(fleet_of(small)) == {"a": "int8", "b": "int8"}
    smaller = [Machine(memory_for(1), "float32", OPEN)] * 2
    assert quantizations(fleet_of(smaller)) == {"a": "int4", "b": "int8"}


def test_who_remains_takes_up_the_blocks_of_a_lost_worker_in_fewer_bits() -> None:
    fleet = fleet_of([Machine(memory_for(3, ends=1), "float32", OPEN)] * 2)
    fleet.all_ready()
    assert quantizations(fleet) == {"a": None, "b": None}
    fleet.do(SocketLost(worker_id=WorkerId("b")))
    fleet.wait(18)
    assert fleet.blocks()["a"] == "0:6"
    assert quantizations(fleet)["a"] == "int8"


def test_pinned_blocks_are_held_in_fewer_bits_if_only_they_were_fixed() -> None:
    for device, expected in ((OPEN, "int4"), (FIXED, None)):
        fleet = Fleet()
        fleet.do(added(n_blocks=N_BLOCKS))
        fleet.join("a", memory=memory_for(1), device=device, pinned_blocks=BlockRange(0, 4))
        fleet.wait(2)
        assert quantizations(fleet) == {"a": expected}
        assert ("in int4, since they don't fit otherwise" in fleet.idle_reason("a")) == (expected is not None)


def test_status_and_plan_say_which_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    fleet = fleet_of([Machine(memory_for(1), "float32", OPEN)] * 2)
    fleet.all_ready()

    why = "m takes 0.00 GB in float32 and the workers have 0.00 GB for it"
    assert f"blocks 0:4 of m in int4, since {why}" in fleet.idle_reason("a")
    info = worker_info(fleet.state, WorkerId("a"), fleet.now_s)
    assert info.state == "ready"
    assert why in info.spans[0].note
    plan = plan_info(fleet.state, "balance", fleet.now_s)
    assert plan.models[0].planned is not None
    assert why in plan.models[0].note
    console().print(worker_table((info,)), plan_table(plan))
    shown = " ".join(capsys.readouterr().out.split())
    assert "m 0:4 in int4" in shown
    assert "0:4 in int4" in shown.partition("ms a token")[2]


@pytest.mark.parametrize(
    ("device", "is_on", "expected"),
    [
        (
            FIXED,
            True,
            "with --precision int8 on b (host-b) and --precision int4 on a (host-a) (now float32) there would be",
        ),
        (OPEN, False, "with `coord serve --auto-quantize on` there would be room for 6 blocks, and 6 are wanted"),
    ],
)
def test_what_would_make_a_model_fit_is_said(device: dict[str, object], is_on: bool, expected: str) -> None:
    fleet = fleet_of([Machine(memory_for(1), "float32", device)] * 2, auto_quantize=is_on)
    assert expected in model_info(fleet.state, M, fleet.now_s).reason
    assert expected in plan_info(fleet.state, "balance", fleet.now_s).models[0].note


def test_that_even_4_bits_are_too_many_is_said() -> None:
    fleet = fleet_of([Machine(memory_for(1), "float32", OPEN)])
    assert "even in int4 there is room for" in model_info(fleet.state, M, fleet.now_s).reason
    assert "in float32" in model_info(fleet.state, M, fleet.now_s).reason
    assert announce("a").device.quantizations == (), "an older worker is never asked"


@pytest.mark.parametrize(
    ("now", "then", "expected"),
    [
        ([None], ["int8"], True),
        (["int8", None], ["int8"], False),
        (["int8"], [None, "int4"], True),
        ([], ["int4"], False),
    ],
)
def test_no_speed_is_worth_fewer_bits(
    now: list[Quantization | None], then: list[Quantization | None], *, expected: bool
) -> None:
    def spans(quantizations: list[Quantization | None]) -> list[SpanAssignment]:
        return [
            SpanAssignment(model=M, revision=added().revision, blocks=BlockRange(0, 1), quantization=quantization)
            for quantization in quantizations
        ]

    assert loses_bits(spans(now), spans(then)) is expected
