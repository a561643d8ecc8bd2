"""Placement against two simpler rules on random fleets, and how long planning and routing take.

`python -m benchmarks.placement` prints the tables of docs/benchmarks.md. Petals' rule: each worker in turn takes as
many blocks as it can hold, where the least throughput is. Equal split: all workers, in turn, equally many blocks as
far as they fit. Speeds are modelled (`coordinator.policy.modelled`), the same way for all three.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import get_args

import msgspec

from coordinator.policy.filling import Stage, water_filled
from coordinator.policy.gap_filling import Candidate
from coordinator.policy.laying_out import segments_of
from coordinator.policy.least_served import Ranges, least_served
from coordinator.policy.links import LINK_S
from coordinator.policy.modelled import ModelledSpeed, speed_of
from coordinator.policy.pipelines import Objective, Task, stages_of
from coordinator.policy.placement import placement
from coordinator.policy.planning import best_pipelines
from coordinator.policy.segments import Segment
from coordinator.policy.shortest_path import cheapest_legs
from coordinator.policy.sizing import CACHE_FLOOR_SHARE, counted_end_in_blocks
from coordinator.policy.state import ClusterState, ModelRecord, PolicySettings, WorkerRecord
from protocol.control_messages import DeviceReport, Heartbeat
from protocol.ids import BlockRange, FileHash, ModelName, WorkerId
from protocol.manifest import Manifest, ModelFile, encode_manifest, revision_of

SIZES = ((2, 3), (4, 6), (7, 12), (13, 30))
"""Fewest and most workers of a fleet."""
BLOCKS = (12, 24, 32, 48)
BLOCK_BYTES = 1000
HEAD_BLOCKS = 2
"""Blocks whose weights the head has: as many as in models of 8 billion parameters."""
DEVICE = DeviceReport(
    device="cpu",
    precision="float32",
    n_threads=1,
    memory_bytes=0,
    bandwidth_bytes_per_s=1e5,
    flops_per_s=1e9,
)


def random_fleet(rng: random.Random, n_workers: int, n_blocks: int, *, objective: Objective = "balance") -> Task:
    """Machines of a few sites: near each other within one, 5 to 50 ms one way between two; speeds over a decade."""
    sites = [rng.randrange(1 + n_workers // 4) for _ in range(n_workers)]
    between = {(a, b): rng.uniform(0.005, 0.05) for a in set(sites) for b in set(sites) if a < b}
    links = [[0.0] * n_workers for _ in range(n_workers)]
    for a in range(n_workers):
        for b in range(a):
            far_s = between.get((min(sites[a], sites[b]), max(sites[a], sites[b])))
            links[a][b] = links[b][a] = rng.uniform(0.0002, 0.002) if far_s is None else far_s
    # together at least the model and a tenth, so that there is something to compare
    shares = [rng.uniform(0.2, 1.0) for _ in range(n_workers)]
    scale = max(1.1, rng.uniform(1.0, 4.0)) * n_blocks / sum(shares)
    caps = [max(2, min(n_blocks, round(share * scale))) for share in shares]
    speeds = [10 ** rng.uniform(-4.0, -3.0) * 2 for _ in range(n_workers)]
    head_in_blocks = counted_end_in_blocks(DEVICE, manifest_of(1))
    candidates = [
        Candidate(
            worker_id=WorkerId(f"w-{i:03d}"),
            seconds_per_block=speeds[i],
            room_bytes=caps[i] * BLOCK_BYTES + BLOCK_BYTES // 2 + HEAD_BLOCKS * BLOCK_BYTES,
            block_bytes=BLOCK_BYTES,
            before_bytes=BLOCK_BYTES // 2,
            after_bytes=HEAD_BLOCKS * BLOCK_BYTES,
            both_bytes=BLOCK_BYTES // 2 + HEAD_BLOCKS * BLOCK_BYTES,
            after_s=head_in_blocks * speeds[i],
        )
        for i in range(n_workers)
    ]
    return Task(n_blocks=n_blocks, candidates=candidates, links=links, objective=objective)


# ------------------------------------------------------------------ rules: ranges by worker


def ours(task: Task) -> Ranges:
    """What the coordinator decides when all of them are there at once."""
    return placed_in(cluster_of(task), task)


def placed_in(state: ClusterState, task: Task) -> Ranges:
    """Likewise of the fleet as `cluster_of` has it, by other settings."""
    placed = placement(state)
    numbers = {candidate.worker_id: i for i, candidate in enumerate(task.candidates)}
    return {numbers[worker_id]: span.blocks for worker_id, what in placed.items() for span in what.spans}


def cluster_of(task: Task) -> ClusterState:
    """The fleet as the coordinator sees it, nothing placed yet, all times measured."""
    workers = {
        candidate.worker_id: WorkerRecord(
            worker_id=candidate.worker_id,
            presence="here",
            seen_s=0.0,
            is_connected=True,
            device=msgspec.structs.replace(
                DEVICE, memory_bytes=int(candidate.room_bytes / (1 - CACHE_FLOOR_SHARE)) + 2
            ),
            block_s=candidate.seconds_per_block,
            heartbeat=Heartbeat(
                n_sessions=0,
                n_queued=0,
                free_kv_bytes=0,
                decode_s_per_block=candidate.seconds_per_block,
                prefill_s_per_token_block=0.0,
                round_trips_s={
                    other.worker_id: 2 * task.links[i][k] for k, other in enumerate(task.candidates) if k != i
                },
            ),
        )
        for i, candidate in enumerate(task.candidates)
    }
    manifest = manifest_of(task.n_blocks)
    model = ModelRecord(name=ModelName("m"), revision=revision_of(encode_manifest(manifest)), manifest=manifest)
    settings = PolicySettings(placement=task.objective)
    return ClusterState(settings=settings, workers=workers, models={model.name: model})


def manifest_of(n_blocks: int) -> Manifest:
    """A model of blocks of `BLOCK_BYTES`, caches included, embeddings of half as much, and its head."""
    ends = [model_file("before", BLOCK_BYTES // 8), model_file("after", HEAD_BLOCKS * BLOCK_BYTES // 4)]
    return Manifest(
        format_version=1,
        architecture="LlamaForCausalLM",
        model_type="llama",
        hidden_size=1,
        vocab_size=1,
        context_length=1,
        kv_elements_per_token=1,
        weights_dtype="float32",
        is_chat=False,
        blocks=tuple(model_file(f"block-{i}", BLOCK_BYTES // 4 - 1) for i in range(n_blocks)),
        before=(ends[0],),
        after=(ends[1],),
        auxiliary=(),
    )


def model_file(name: str, n_parameters: int) -> ModelFile:
    """A file that nobody reads."""
    digest = FileHash(hashlib.sha256(name.encode()).hexdigest())
    return ModelFile(name=name, sha256=digest, size_bytes=4 * n_parameters, n_parameters=n_parameters)


def petals(task: Task) -> Ranges:
    """Each in turn where the least throughput is, with as many blocks as it has room for."""
    return least_served(task.n_blocks, task.candidates, {}, range(len(task.candidates)))


def equal_split(task: Task) -> Ranges:
    """All of them, in turn, equally many blocks as far as they fit."""
    fitting = stages_of(task, range(len(task.candidates)))
    stages = [Stage(seconds_per_block=1.0, cap=stage.cap) for stage in fitting]
    ranges, start = {}, 0
    for i, n in enumerate(water_filled(task.n_blocks, stages)):
        if n:
            ranges[i] = BlockRange(start, start + n)
            start += n
    return ranges


def speed(task: Task, ranges: Ranges) -> ModelledSpeed | None:
    """By the model that all are compared by; None if blocks are left out."""
    return speed_of(segments_of(task, ranges), task.n_blocks)


# ------------------------------------------------------------------ tables


METRICS: dict[str, Callable[[ModelledSpeed], float]] = {
    "one stream": lambda found: 1 / found.step_s,
    "many streams": lambda found: found.tokens_per_s,
    "both alike": lambda found: (found.tokens_per_s / found.step_s) ** 0.5,
}


def compared(n_fleets: int, seed: int, objective: Objective) -> Iterator[str]:
    """Rows: how many times as fast ours is as the other rule."""
    yield "| workers | fleets | against | left blocks out | one stream | many streams | both alike |"
    yield "|---|---|---|---|---|---|---|"
    for least, most in SIZES:
        rng = random.Random(seed * 1000 + least)  # noqa: S311 - the same fleets every time
        rivals: dict[str, Callable[[Task], Ranges]] = {"Petals' rule": petals, "equal split": equal_split}
        ratios: dict[tuple[str, str], list[float]] = {(r, m): [] for r in rivals for m in METRICS}
        left_out = dict.fromkeys(rivals, 0)
        for _ in range(n_fleets // len(SIZES)):
            task = random_fleet(rng, rng.randint(least, most), rng.choice(BLOCKS), objective=objective)
            mine = speed(task, ours(task))
            for rival, rule in rivals.items():
                theirs = speed(task, rule(task))
                if theirs is None or mine is None:
                    left_out[rival] += theirs is None
                    continue
                for name, metric in METRICS.items():
                    ratios[rival, name].append(metric(mine) / metric(theirs))
        for rival in rivals:
            cells = [figures(ratios[rival, name]) for name in METRICS]
            yield (
                f"| {least} to {most} | {n_fleets // len(SIZES)} | {rival} | {left_out[rival]} | "
                + " | ".join(cells)
                + " |"
            )


def figures(ratios: Sequence[float]) -> str:
    """Mean, median, worst."""
    return f"{statistics.mean(ratios):.2f}, {statistics.median(ratios):.2f}, {min(ratios):.2f}"


def planning_time(seed: int) -> str:
    """200 workers and 80 blocks, least of three."""
    task = random_fleet(random.Random(seed), 200, 80)  # noqa: S311 - as above
    return f"a plan for 200 workers and 80 blocks: {least_s(lambda: best_pipelines(task), 3):.2f} s"


def routing_times(seed: int) -> Iterator[str]:
    """1,000 workers with ranges of every kind, least of ten: the search alone."""
    for name, longest in (("ranges of 10 blocks", 10), ("ranges of any length", 80)):
        rng = random.Random(seed)  # noqa: S311 - as above
        segments = random_segments(rng, 1000, 80, longest)
        seconds = least_s(partial(cheapest_legs, segments, 80), 10)
        yield f"a route among 1,000 workers, {name}: {1000 * seconds:.1f} ms"


def random_segments(rng: random.Random, n_workers: int, n_blocks: int, longest: int) -> list[Segment]:
    """The first few cover all blocks; each worker has measured the way to eight others."""
    ids = [WorkerId(f"w-{i:04d}") for i in range(n_workers)]
    segments = []
    for i, worker_id in enumerate(ids):
        n = longest if longest < n_blocks else rng.randint(1, n_blocks)
        start = i * n if i * n + n <= n_blocks else rng.randint(0, n_blocks - n)
        segments.append(
            Segment(
                worker_id=worker_id,
                blocks=BlockRange(start, start + n) if i or longest < n_blocks else BlockRange(0, n_blocks),
                seconds_per_block=rng.uniform(0.001, 0.02),
                link_s={other: LINK_S * rng.uniform(0.5, 50.0) for other in rng.sample(ids, 8)},
            )
        )
    return segments


def least_s(call: Callable[[], object], n: int) -> float:
    """The shortest of so many calls."""
    times = []
    for _ in range(n):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fleets", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--placement", choices=get_args(Objective), default="balance")
    arguments = parser.parse_args()
    print(f"Placed for {arguments.placement}; times as fast as the other rule: mean, median, worst.\n")
    for row in compared(arguments.fleets, arguments.seed, arguments.placement):
        print(row)
    print()
    print(planning_time(arguments.seed))
    for line in routing_times(arguments.seed):
        print(line)


if __name__ == "__main__":
    main()
