"""What routes lose by not knowing how far a client is from the workers, in the model that placement goes by.

`python -m benchmarks.client_legs` prints the table of decision 22. Random fleets are those of `placement`, with a
client beside one of the workers; offices are two sites of equal machines that can each hold the whole model. Each
session goes over the best route for who knows the client's ways; over the one that is found by the workers' links
alone; and over the one that the coordinator finds for a client which has said how far all of them are.

A session of tokens has these ways once: the prompt goes to the head, the first token comes from the tail, and each
later one is sent to the head and the client at once. A connection that isn't there yet takes three round trips more
(TCP, TLS, WebSocket). A private session has them in every token, since its client is a stage of the ring.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.placement import BLOCKS, ours, random_fleet
from coordinator.policy.client_ways import CONNECTING_WAYS, cheapest_for, client_ways
from coordinator.policy.laying_out import segments_of
from coordinator.policy.links import LINK_S
from coordinator.policy.segments import Leg, Segment, cost_s
from coordinator.policy.shortest_path import cheapest_legs
from protocol.client_legs import ClientLeg
from protocol.ids import BlockRange, WorkerId

CLIENT = WorkerId("client")
N_WORKERS = (2, 10)
N_TOKENS = 100

Ways = Mapping[WorkerId, float]
"""One way between the client and each worker, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A client, and what is ready."""

    segments: Sequence[Segment]
    n_blocks: int
    ways: Ways


def random_cases(n_cases: int, seed: int) -> Iterator[Case]:
    """Fleets of a few sites, speeds over a decade, placed as the coordinator does."""
    rng = random.Random(seed)  # noqa: S311 - the same every time
    while n_cases:
        task = random_fleet(rng, rng.randint(*N_WORKERS), rng.choice(BLOCKS))
        segments, beside = segments_of(task, ours(task)), rng.randrange(len(task.candidates))
        if covers(segments, task.n_blocks):
            n_cases -= 1
            far = zip(task.candidates, task.links[beside], strict=True)
            ways = {candidate.worker_id: max(LINK_S, link_s) for candidate, link_s in far}
            yield Case(segments=segments, n_blocks=task.n_blocks, ways=ways)


def office_cases(n_cases: int, seed: int) -> Iterator[Case]:
    """Two sites, 5 to 50 ms apart, 1 to 3 machines at each: whoever serves does so alone."""
    rng = random.Random(seed)  # noqa: S311 - as above
    for _ in range(n_cases):
        n_here, n_there, apart_s = rng.randint(1, 3), rng.randint(1, 3), rng.uniform(0.005, 0.05)
        ids = [WorkerId(f"w-{i}") for i in range(n_here + n_there)]
        rng.shuffle(ids)
        s_per_block = 10 ** rng.uniform(-4.0, -3.0)
        segments = [
            Segment(worker_id=one, blocks=BlockRange(0, 24), seconds_per_block=s_per_block, link_s={})
            for one in sorted(ids)
        ]
        ways = {one: LINK_S if i < n_here else apart_s for i, one in enumerate(ids)}
        yield Case(segments=segments, n_blocks=24, ways=ways)


def unsaid(case: Case) -> list[Leg]:
    """The route for a client that says nothing of its ways."""
    return cheapest_legs(case.segments, case.n_blocks)[1]


def said(case: Case, *, is_private: bool = False, is_connected: bool = False) -> list[Leg]:
    """The route for one that says all of them, and whether it has connections."""
    legs = [
        ClientLeg(worker_id=worker_id, round_trip_s=2 * way_s, is_connected=is_connected)
        for worker_id, way_s in case.ways.items()
    ]
    ways = client_ways(legs, case.ways, max_tokens=N_TOKENS, is_private=is_private)
    parted, route = cheapest_for(case.segments, case.n_blocks, ways)
    numbers = {segment.worker_id: i for i, segment in enumerate(case.segments)}
    return [(numbers[parted[i].worker_id], start, end) for i, start, end in route]


def private_ratio(case: Case, given: Sequence[Leg]) -> float:
    """How many times as long a token takes over the route that is given as over the best one."""
    ring = [
        # the client, as a stage that takes no time
        Segment(worker_id=CLIENT, blocks=BlockRange(0, 1), seconds_per_block=0.0, link_s=case.ways),
        *(
            replace(
                segment,
                blocks=BlockRange(segment.blocks.start + 1, segment.blocks.end + 1),
                link_s={**segment.link_s, CLIENT: case.ways[segment.worker_id]},
            )
            for segment in case.segments
        ),
    ]
    _, best = cheapest_legs(ring, case.n_blocks + 1)
    return cost_s(ring, [(0, 0, 1), *((i + 1, a + 1, b + 1) for i, a, b in given)]) / cost_s(ring, best)


def answer_ratio(case: Case, given: Sequence[Leg], *, is_connected: bool) -> float:
    """Likewise of a session of `N_TOKENS` tokens, from a client that has connections to all or to nobody."""
    best_s = took_s = answer_s(case.segments, given, case.ways, is_connected=is_connected)
    for head in case.segments:
        for tail in case.segments:
            tried = with_ends(case.segments, head.worker_id, tail.worker_id, case.n_blocks)
            if covers(tried, case.n_blocks):
                _, legs = cheapest_legs(tried, case.n_blocks)
                best_s = min(best_s, answer_s(tried, legs, case.ways, is_connected=is_connected))
    return took_s / best_s


def answer_s(segments: Sequence[Segment], legs: Sequence[Leg], ways: Ways, *, is_connected: bool) -> float:
    """The whole answer; its prompt, which takes as long over either, is left out."""
    head, tail = segments[legs[0][0]].worker_id, segments[legs[-1][0]].worker_id
    if is_connected:
        ends_s = ways[head] + ways[tail]
    else:  # to both at the same time
        ends_s = max((1 + CONNECTING_WAYS) * ways[head], CONNECTING_WAYS * ways[tail]) + ways[tail]
    return N_TOKENS * (cost_s(segments, legs) - LINK_S) + ends_s


def with_ends(segments: Sequence[Segment], head: WorkerId, tail: WorkerId, n_blocks: int) -> list[Segment]:
    """The segments without the first block but on `head`, and without the last but on `tail`."""
    kept = []
    for segment in segments:
        start = max(segment.blocks.start, int(segment.worker_id != head))
        end = min(segment.blocks.end, n_blocks - int(segment.worker_id != tail))
        if start < end:
            kept.append(replace(segment, blocks=BlockRange(start, end)))
    return kept


def covers(segments: Sequence[Segment], n_blocks: int) -> bool:
    """Whether each block is held."""
    return all(any(one.blocks.start <= block < one.blocks.end for one in segments) for block in range(n_blocks))


def row(name: str, ratios: Sequence[float]) -> str:
    """Mean, median, 95th percentile and worst, and in how many nothing was lost."""
    ordered = sorted(ratios)
    n_best = sum(ratio < 1.0 + 1e-9 for ratio in ordered)
    figures = statistics.mean(ordered), statistics.median(ordered), ordered[int(0.95 * (len(ordered) - 1))]
    return f"| {name} | {' | '.join(f'{figure:.2f}' for figure in (*figures, ordered[-1]))} | {n_best} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=400, help="of each kind")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    print(f"{arguments.cases} of each kind; times as long as over the best route\n")
    print("| | mean | median | 95th percentile | worst | nothing lost in |")
    print("|---|---|---|---|---|---|")
    for name, made in (("random fleets", random_cases), ("offices", office_cases)):
        cases = list(made(arguments.cases, arguments.seed))
        for asked in ("nothing said", "legs said"):
            for what, ratios in measured(cases, is_said=asked == "legs said"):
                print(row(f"{name}: {what}, {asked}", ratios))


def measured(cases: Sequence[Case], *, is_said: bool) -> Iterator[tuple[str, list[float]]]:
    """What is measured, and how many times as long each case takes."""
    for what, is_connected in (
        (f"an answer of {N_TOKENS} tokens", True),
        ("likewise, over new connections", False),
    ):
        routes = [said(case, is_connected=is_connected) if is_said else unsaid(case) for case in cases]
        pairs = zip(cases, routes, strict=True)
        yield what, [answer_ratio(case, route, is_connected=is_connected) for case, route in pairs]
    routes = [said(case, is_private=True) if is_said else unsaid(case) for case in cases]
    yield "a token of a private session", [private_ratio(c, route) for c, route in zip(cases, routes, strict=True)]


if __name__ == "__main__":
    main()
