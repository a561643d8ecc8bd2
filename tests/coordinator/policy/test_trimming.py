"""What is held twice is given back so that nobody loads anything, all keep something, and the slowest is quick."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise, permutations

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.policy.handover import Spans
from coordinator.policy.state import ClusterState
from coordinator.policy.trimming import slowest_s, trimmed
from protocol.control_messages import SpanAssignment
from protocol.ids import BlockRange, ModelName, WorkerId
from tests.coordinator.policy.fleet import SPREAD, Fleet, added

N_BLOCKS = 5
M = ModelName("m")


def state_of(n_workers: int, speeds: tuple[float, ...]) -> ClusterState:
    fleet = Fleet(ClusterState(settings=SPREAD))
    fleet.do(added(n_blocks=N_BLOCKS))
    for i in range(n_workers):
        fleet.join(f"w{i}", speed=speeds[i])
    return fleet.state


def spans(state: ClusterState, *ranges: BlockRange) -> Spans:
    revision = state.models[M].revision
    return tuple(SpanAssignment(model=M, revision=revision, blocks=blocks) for blocks in ranges)


@st.composite
def holdings(draw: st.DrawFn) -> tuple[ClusterState, dict[WorkerId, Spans]]:
    """Up to four workers, of several speeds, each with a range of its own."""
    n_workers = draw(st.integers(1, 4))
    state = state_of(n_workers, tuple(draw(st.sampled_from((1.0, 2.0, 5.0))) for _ in range(n_workers)))
    held = {}
    for worker_id in sorted(state.workers):
        start = draw(st.integers(0, N_BLOCKS - 1))
        held[worker_id] = spans(state, BlockRange(start, draw(st.integers(start + 1, N_BLOCKS))))
    return state, held


def quickest_s(state: ClusterState, held: dict[WorkerId, Spans]) -> float | None:
    """The least that the slowest can take, of all ways to cut the model; None if there is none."""
    found = []
    for order in permutations(sorted(held)):
        for cuts in cuts_of(len(order)):
            ranges = [BlockRange(a, b) for a, b in pairwise(cuts)]
            own = [held[w][0].blocks for w in order]
            if all(o.start <= r.start and r.end <= o.end for o, r in zip(own, ranges, strict=True)):
                layout = {w: spans(state, r) for w, r in zip(order, ranges, strict=True)}
                found.append(slowest_s(state, layout))
    return min(found, default=None)


def are_side_by_side(ranges: Iterable[BlockRange]) -> bool:
    """Whether none is a part of another that goes on at both ends."""
    pairs = permutations(ranges, 2)
    return not any(outer.start < inner.start and inner.end < outer.end for outer, inner in pairs)


def cuts_of(n_parts: int, start: int = 0) -> list[tuple[int, ...]]:
    if n_parts == 0:
        return [(start,)] if start == N_BLOCKS else []
    return [(start, *rest) for end in range(start + 1, N_BLOCKS + 1) for rest in cuts_of(n_parts - 1, end)]


@settings(max_examples=40)
@given(holdings())
def test_each_block_is_kept_once_by_who_held_it_and_everybody_keeps_some(
    made: tuple[ClusterState, dict[WorkerId, Spans]],
) -> None:
    state, held = made
    kept = trimmed(state, held)
    if kept is None:
        return
    ranges = sorted((span.blocks.start, span.blocks.end) for own in kept.values() for span in own)
    assert [i for start, end in ranges for i in range(start, end)] == list(range(N_BLOCKS))
    for worker_id, own in held.items():
        (part,) = kept[worker_id]
        assert own[0].blocks.start <= part.blocks.start
        assert part.blocks.end <= own[0].blocks.end


@settings(max_examples=40)
@given(holdings())
def test_it_is_never_better_than_the_best_cut_and_equal_workers_side_by_side_get_that(
    made: tuple[ClusterState, dict[WorkerId, Spans]],
) -> None:
    state, held = made
    kept, best_s = trimmed(state, held), quickest_s(state, held)
    if kept is not None:
        assert best_s is not None
        assert slowest_s(state, kept) >= best_s
    are_equal = len({w.device.bandwidth_bytes_per_s for w in state.workers.values() if w.device}) == 1
    if are_equal and are_side_by_side(own[0].blocks for own in held.values()):
        assert (kept is None) == (best_s is None)
        assert kept is None or best_s is None or slowest_s(state, kept) == best_s


def test_a_range_within_another_is_no_hindrance() -> None:
    """In the order in which they end the second would come first, and nobody would keep the first block."""
    state = state_of(3, (1.0, 1.0, 1.0))
    ranges = (BlockRange(0, 5), BlockRange(3, 4), BlockRange(3, 5))
    held = {WorkerId(f"w{i}"): spans(state, blocks) for i, blocks in enumerate(ranges)}
    kept = trimmed(state, held)
    assert kept is not None
    assert [kept[WorkerId(f"w{i}")][0].blocks for i in range(3)] == [
        BlockRange(0, 3),
        BlockRange(3, 4),
        BlockRange(4, 5),
    ]


def test_replicas_pins_and_mixed_trust_are_left_to_the_planner() -> None:
    state = state_of(2, (1.0, 1.0))
    whole = spans(state, BlockRange(0, N_BLOCKS))
    held = dict.fromkeys(state.workers, whole)
    assert trimmed(state, held) is not None

    two = {M: replace(state.models[M], n_replicas=2)}
    assert trimmed(replace(state, models=two), held) is None
    first, second = (state.workers[WorkerId(w)] for w in ("w0", "w1"))
    pinned = replace(first, announced_blocks=BlockRange(0, 2))
    assert trimmed(replace(state, workers={first.worker_id: pinned, second.worker_id: second}), held) is None
    trusted = replace(second, trust=replace(second.trust, level="trusted"))
    other = replace(first, trust=replace(first.trust, level="probation"))
    mixed = {first.worker_id: other, second.worker_id: trusted}
    assert trimmed(replace(state, workers=mixed), held) is None
