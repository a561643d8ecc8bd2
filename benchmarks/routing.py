"""How long a route among 1,000 workers takes: hard fleets, clients near and far, and what requests ask beside it.

`python -m benchmarks.routing` prints the table of docs/benchmarks.md: median, 99th percentile and worst
in CPU time, since other work on the machine changes that little. A case is one `cheapest_route`, as the
coordinator asks it when it remembers no route: the fleet's segments are known, from one state to the next.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from benchmarks.placement import DEVICE, manifest_of
from coordinator.policy.client_ways import ClientWays, client_ways
from coordinator.policy.missing import MissingBlocks
from coordinator.policy.ready_segments import ReadySegments
from coordinator.policy.routing import NOTHING_AVOIDED, NOTHING_HELD, Avoided, Held, Route, cheapest_route
from coordinator.policy.state import Assignment, ClusterState, ModelRecord, WorkerRecord
from coordinator.policy.trust import Standing
from coordinator.policy.trust_words import below
from protocol.client_legs import MAX_CLIENT_LEGS, ClientLeg
from protocol.control_messages import Heartbeat, SpanAssignment, SpanStatus
from protocol.ids import BlockRange, ModelName, WorkerId
from protocol.manifest import encode_manifest, revision_of

N_WORKERS = 1000
N_BLOCKS = 80
BOUND_S = 0.010
MODEL = ModelName("m")
NEAR_S, FAR_S = (0.0003, 0.003), (0.005, 0.1)
"""Round trips within a site, and between two."""
N_MEASURED = 8
"""Others to whom each worker has measured the way."""


@dataclass(frozen=True, slots=True)
class Machine:
    """One worker, in short."""

    blocks: BlockRange
    block_s: float
    site: int = 0


def anything(rng: random.Random) -> Iterator[Machine]:
    """Ranges of any length, speeds over a decade and more."""
    yield Machine(BlockRange(0, N_BLOCKS), 0.02)
    for _ in range(N_WORKERS - 1):
        start = rng.randrange(N_BLOCKS)
        yield Machine(
            BlockRange(start, rng.randint(start + 1, N_BLOCKS)), rng.uniform(0.001, 0.02), rng.randrange(5)
        )


def short(rng: random.Random) -> Iterator[Machine]:
    """Ranges of 10 blocks, anywhere."""
    for i in range(N_WORKERS):
        start = 10 * i if i < N_BLOCKS // 10 else rng.randint(0, N_BLOCKS - 10)
        yield Machine(BlockRange(start, start + 10), rng.uniform(0.001, 0.02), rng.randrange(5))


def equal(rng: random.Random) -> Iterator[Machine]:
    """The same machine a thousand times, an eighth of the model each: all ways cost the same."""
    for i in range(N_WORKERS):
        yield Machine(BlockRange(10 * (i % 8), 10 * (i % 8) + 10), 0.002, rng.randrange(5))


def quarters(rng: random.Random) -> Iterator[Machine]:
    """250 replicas of each quarter of the model, nearly as fast as each other, at five sites."""
    for i in range(N_WORKERS):
        yield Machine(
            BlockRange(20 * (i % 4), 20 * (i % 4) + 20), 0.001 * rng.uniform(0.95, 1.05), rng.randrange(5)
        )


def replicas(rng: random.Random) -> Iterator[Machine]:
    """Each holds the whole model, nearly as fast as the others."""
    for _ in range(N_WORKERS):
        yield Machine(BlockRange(0, N_BLOCKS), 0.001 * rng.uniform(0.98, 1.02), rng.randrange(5))


def alike(rng: random.Random) -> Iterator[Machine]:
    """Ranges of any length on machines that are nearly as fast: everybody may be part of the best way."""
    yield Machine(BlockRange(0, N_BLOCKS), 0.001)
    for _ in range(N_WORKERS - 1):
        start = rng.randrange(N_BLOCKS)
        yield Machine(
            BlockRange(start, rng.randint(start + 1, N_BLOCKS)), 0.001 * rng.uniform(1.0, 1.05), rng.randrange(5)
        )


def slow_site(rng: random.Random) -> Iterator[Machine]:
    """All hold everything; at the first of twenty sites are slow machines: near clients they look cheap as ends."""
    for _ in range(N_WORKERS):
        site = rng.randrange(20)
        yield Machine(BlockRange(0, N_BLOCKS), (0.001 if site else 0.006) * rng.uniform(0.9, 1.1), site)


FLEETS: dict[str, Callable[[random.Random], Iterator[Machine]]] = {
    "ranges of any length": anything,
    "ranges of 10 blocks": short,
    "equal machines": equal,
    "quarters of the model": quarters,
    "whole models": replicas,
    "any length, alike": alike,
    "a slow site": slow_site,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a request wants beside a route."""

    exclude: frozenset[WorkerId] = frozenset()
    avoided: Avoided = NOTHING_AVOIDED
    held: Held = field(default_factory=lambda: NOTHING_HELD)
    pinned_ends: bool = False
    blocks: BlockRange | None = None
    """Those that workers run, if the client runs the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One search, with what it is counted under."""

    fleet: str
    legs: str
    asked: str
    search: Callable[[], Route | MissingBlocks]


def fleet_state(machines: Sequence[Machine], rng: random.Random) -> ClusterState:
    """All of them there and ready; one in seven pinned as trusted, one in twenty weak."""
    manifest = manifest_of(N_BLOCKS)
    model = ModelRecord(name=MODEL, revision=revision_of(encode_manifest(manifest)), manifest=manifest)
    ids = [WorkerId(f"w-{i:04d}") for i in range(len(machines))]
    standings = [Standing(score=0.9, level="trusted", is_pinned=True), Standing(score=0.3, level="weak")]
    workers = {}
    for i, one in enumerate(machines):
        span = SpanAssignment(model=MODEL, revision=model.revision, blocks=one.blocks)
        others = ((k, site_s(one, machines[k], rng)) for k in rng.sample(range(len(ids)), N_MEASURED) if k != i)
        beat = Heartbeat(
            n_sessions=0,
            n_queued=0,
            free_kv_bytes=0,
            decode_s_per_block=one.block_s,
            prefill_s_per_token_block=0.0,
            round_trips_s={ids[k]: seconds for k, seconds in others},
        )
        workers[ids[i]] = WorkerRecord(
            worker_id=ids[i],
            presence="here",
            seen_s=0.0,
            is_connected=True,
            device=DEVICE,
            block_s=one.block_s,
            heartbeat=beat,
            assignment=Assignment(epoch=1, spans=(span,)),
            reported=(
                SpanStatus(model=MODEL, revision=model.revision, blocks=one.blocks, state="ready", reason=""),
            ),
            trust=standings[0] if i % 7 == 0 else standings[1] if i % 20 == 1 else Standing(score=0.6),
        )
    return ClusterState(workers=workers, models={MODEL: model})


def site_s(one: Machine, other: Machine, rng: random.Random) -> float:
    """A round trip between two machines."""
    return rng.uniform(*(NEAR_S if one.site == other.site else FAR_S))


def clients(machines: Sequence[Machine], rng: random.Random) -> Iterator[tuple[str, bool, ClientWays | None]]:
    """Who asks: how many legs are said, whether the session is private, and the ways; a client is at a site."""
    yield "none", False, None
    yield "none", True, None
    for n_legs in (6, MAX_CLIENT_LEGS):
        here = Machine(BlockRange(0, 1), 0.0, 0)
        ends = [i for i, one in enumerate(machines) if one.blocks.start == 0 or one.blocks.end == N_BLOCKS]
        legs = [
            ClientLeg(
                worker_id=WorkerId(f"w-{i:04d}"),
                round_trip_s=site_s(here, machines[i], rng),
                is_connected=rng.random() < 0.5,
            )
            for i in rng.sample(ends, min(n_legs, len(ends)))
        ]
        known = {leg.worker_id for leg in legs}
        for max_tokens in (128, 8):
            yield f"{n_legs}", False, client_ways(legs, known, max_tokens=max_tokens, is_private=False)
        yield f"{n_legs}", True, client_ways(legs, known, max_tokens=128, is_private=True)


def requests(state: ClusterState, rng: random.Random) -> Iterator[tuple[str, Asked]]:
    """What else is asked of a route."""
    ids = list(state.workers)
    failed = rng.sample(ids, 8)
    span = state.workers[ids[0]].assignment.spans[0].blocks
    yield "nothing", Asked()
    yield "pinned ends", Asked(pinned_ends=True)
    yield "a minimum of trust", Asked(exclude=below(state, 0.5))
    yield (
        "a way round failures",
        Asked(avoided=Avoided(workers=frozenset(failed[:4]), links=frozenset(pairwise(failed)))),
    )
    yield "a prefix that is held", Asked(held={(ids[0], span): 0.01})


def cases(seed: int) -> Iterator[Case]:
    """All of them, of one fleet of each kind."""
    for name, make in FLEETS.items():
        rng = random.Random(f"{name}{seed}")  # noqa: S311 - the same every time
        machines = list(make(rng))
        state, known = fleet_state(machines, rng), ReadySegments()
        for said, is_private, ways in clients(machines, rng):
            for what, asked in requests(state, rng):
                wanted = replace(asked, blocks=BlockRange(2, N_BLOCKS - 2)) if is_private else asked
                kind = f"{what}, private" if is_private else what
                yield Case(fleet=name, legs=said, asked=kind, search=searched(state, wanted, ways, known))


def searched(
    state: ClusterState, asked: Asked, ways: ClientWays | None, known: ReadySegments
) -> Callable[[], Route | MissingBlocks]:
    """The search, to be run as often as one likes."""

    def search() -> Route | MissingBlocks:
        return cheapest_route(
            state,
            MODEL,
            asked.exclude,
            asked.avoided,
            asked.held,
            known,
            pinned_ends=asked.pinned_ends,
            blocks=asked.blocks,
            ways=ways,
        )

    return search


def cpu_s(search: Callable[[], object], n: int) -> float:
    """The least of so many, after one that isn't counted."""
    search()
    times = []
    for _ in range(n):
        began = time.process_time()
        search()
        times.append(time.process_time() - began)
    return min(times)


def row(name: str, times_s: Sequence[float]) -> str:
    """Cases, middle, 99th percentile and worst."""
    ordered = sorted(times_s)
    picked = (ordered[int(share * (len(ordered) - 1) + 0.5)] for share in (0.5, 0.99, 1.0))
    over = sum(seconds > BOUND_S for seconds in ordered)
    return f"| {name} | {len(ordered)} | {' | '.join(f'{1000 * s:.1f}' for s in picked)} | {over} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=4, help="fleets of each kind")
    parser.add_argument("--times", type=int, default=3, help="of which the least counts")
    arguments = parser.parse_args()
    took: list[tuple[Case, float]] = []
    for seed in range(arguments.seeds):
        took += [(replace(case, search=tuple), cpu_s(case.search, arguments.times)) for case in cases(seed)]
    print("| | cases | p50, ms | p99, ms | worst, ms | over 10 ms |\n|---|---|---|---|---|---|")
    print(row("all", [seconds for _, seconds in took]))
    for part in ("fleet", "legs", "asked"):
        for name in dict.fromkeys(getattr(case, part) for case, _ in took):
            print(row(f"{part}: {name}", [seconds for case, seconds in took if getattr(case, part) == name]))


if __name__ == "__main__":
    main()
