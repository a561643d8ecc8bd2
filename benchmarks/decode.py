"""One stream through one and two workers, beside transformers in the same run: speed, first token, hops, memory.

    python -m benchmarks.decode [--precision float32 bfloat16] [--tokens 64] [--repeats 3] [--json]

Workers are real processes with one thread each, on loopback with TLS. transformers runs in this process with one
thread, on the same weights in the same precision, in turn with ours; ratios are taken pair by pair and the median
is given, so that they hold when a shared machine's speed drifts. Other figures are only good for this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from rich.console import Console
from rich.table import Table

from benchmarks.measures import PLAIN
from benchmarks.reference import reference_decode, reference_model, reference_prefill_s
from client.api import Client
from demo.local_cluster import LocalCluster, polls, smollm2_gguf

MODEL = "smollm2"
FOLDER = Path(".cache/bench")
PROMPT = "Here is the complete history of the lighthouse, from the first fires on the cliffs to our day:"
SPLITS = {1: ("0:30",), 2: ("0:15", "15:30")}
N_PREFILL = 512
N_BLOCKS, BLOCK_PARAMETERS, EMBEDDING_PARAMETERS = 30, 3_540_096, 49152 * 576
"""Of SmolLM2-135M."""


@dataclass
class Figures:
    """What one arrangement gave; lists hold one value a repeat."""

    precision: str
    n_workers: int
    decode_ratio: list[float] = field(default_factory=list)
    """Ours over transformers, tokens per second after the first."""
    ours_tokens_per_s: list[float] = field(default_factory=list)
    ttft_ratio: list[float] = field(default_factory=list)
    """Ours over transformers' prefill, seconds, prompt of 512 tokens."""
    ours_ttft_s: list[float] = field(default_factory=list)
    last_step_s: float = 0.0
    """A step of the generation that the workers' averages come from."""
    hop_ms: float = 0.0
    """Step time minus the stages' own compute, for each hop."""
    worker_rss_mb: list[float] = field(default_factory=list)
    worker_weights_mb: list[float] = field(default_factory=list)
    start_s: float = 0.0
    """The last worker, started again, files in its cache."""
    coordinator_rss_mb: float = 0.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = [
        measured(precision, n_workers, arguments.tokens, arguments.repeats)
        for precision in arguments.precision
        for n_workers in SPLITS
    ]
    if arguments.json:
        json.dump([asdict(result) for result in results], sys.stdout, indent=1)
    else:
        Console(width=150).print(table(results, arguments))


def measured(precision: str, n_workers: int, n_tokens: int, repeats: int) -> Figures:
    """All figures of one arrangement."""
    print(f"measuring {precision} with {n_workers} worker(s), {repeats} times", file=sys.stderr, flush=True)
    figures = Figures(precision=precision, n_workers=n_workers)
    gguf = smollm2_gguf()
    reference = reference_model(gguf, precision)
    with LocalCluster(FOLDER.resolve() / f"{n_workers}") as cluster:
        cluster.start_coordinator()
        if not cluster.status()["models"]:
            added = cluster.run("coord", "model", "add", MODEL, str(gguf))
            assert added.returncode == 0, added.stderr.decode()
        for i, blocks in enumerate(SPLITS[n_workers]):
            cluster.start_worker(f"worker-{i}", "--blocks", blocks, "--precision", precision)
            wait_for_ready_workers(cluster, i + 1)
        os.environ.update(BRIGADE_STATE=str(cluster.state))
        asyncio.run(run_streams(figures, reference, n_tokens, repeats))
        figures.hop_ms = hop_ms(cluster, figures)
        measure_memory(figures, cluster)
        figures.start_s = start_s(cluster, f"worker-{n_workers - 1}", SPLITS[n_workers][-1], precision)
    return figures


def wait_for_ready_workers(cluster: LocalCluster, n_workers: int) -> None:
    """Until so many workers are ready (the model may not be covered yet)."""
    for _ in polls(120):
        if sum(worker["state"] == "ready" for worker in cluster.status()["workers"]) >= n_workers:
            return
    raise TimeoutError(f"{n_workers} workers weren't ready in 120 s; see {cluster.folder}")


async def run_streams(figures: Figures, reference: Any, n_tokens: int, repeats: int) -> None:
    """Decode and prefill, ours and transformers' in turn; once before it counts."""
    async with Client() as client:
        for repeat in range(-1, repeats):
            _, theirs = await asyncio.to_thread(reference_decode, reference, list(range(1000, 1020)), n_tokens)
            ours = await client.generate(
                MODEL, PROMPT, max_tokens=n_tokens, temperature=0.0, ignore_eos=True, **PLAIN
            )
            prompt = [1000 + repeat, *range(1001, 1000 + N_PREFILL)]  # none that a worker still knows
            prefill_s = await asyncio.to_thread(reference_prefill_s, reference, prompt, 1)
            first = await client.generate(MODEL, prompt, max_tokens=1, temperature=0.0, **PLAIN)
            if repeat >= 0:
                figures.decode_ratio.append(ours.tokens_per_s / theirs)
                figures.ours_tokens_per_s.append(ours.tokens_per_s)
                figures.ttft_ratio.append(first.ttft_s / prefill_s)
                figures.ours_ttft_s.append(first.ttft_s)
        # leaves decode times in the workers' averages
        last = await client.generate(MODEL, PROMPT, max_tokens=n_tokens, temperature=0.0, **PLAIN)
        figures.last_step_s = 1 / last.tokens_per_s


def hop_ms(cluster: LocalCluster, figures: Figures) -> float:
    """Step time minus what the workers report as their stages' compute (averages of the last steps), a hop."""
    time.sleep(2.5)  # two heartbeats: the reports hold the last stream's steps
    compute_s = 0.0
    for worker in cluster.status()["workers"]:
        n_blocks = sum(span["blocks"]["end"] - span["blocks"]["start"] for span in worker["spans"])
        compute_s += worker["decode_s_per_block"] * n_blocks
    return (figures.last_step_s - compute_s) / figures.n_workers * 1000


def start_s(cluster: LocalCluster, name: str, blocks: str, precision: str) -> float:
    """From the start of the worker's process, files in its cache, to its saying that it is ready."""
    cluster.stop(name)
    began = time.monotonic()
    cluster.start_worker(name, "--blocks", blocks, "--precision", precision)
    while "ready:" not in cluster.log(name):
        if time.monotonic() - began > 120:
            raise TimeoutError(f"{name} wasn't ready in 120 s; see {cluster.folder}")
        time.sleep(0.02)
    return time.monotonic() - began


def measure_memory(figures: Figures, cluster: LocalCluster) -> None:
    """Resident memory of the processes, beside the weights that each worker holds."""
    for name, process in cluster.processes.items():
        rss_mb = psutil.Process(process.pid).memory_info().rss / 1e6
        if name == "coordinator":
            figures.coordinator_rss_mb = rss_mb
        else:
            figures.worker_rss_mb.append(rss_mb)
    n_bytes = 4 if figures.precision == "float32" else 2
    for blocks in SPLITS[figures.n_workers]:
        start, end = map(int, blocks.split(":"))
        has_embedding = start == 0 or end == N_BLOCKS  # tied: one matrix, whoever needs it
        n_parameters = (end - start) * BLOCK_PARAMETERS + has_embedding * EMBEDDING_PARAMETERS
        figures.worker_weights_mb.append(n_parameters * n_bytes / 1e6)


def table(results: list[Figures], arguments: argparse.Namespace) -> Table:
    """The figures for people."""
    shown = Table(
        title=f"SmolLM2-135M, one stream, {arguments.tokens} tokens, one thread a worker, median of "
        f"{arguments.repeats}; transformers {transformers.__version__}, torch {torch.__version__}, one thread, "
        "same run"
    )
    columns = ("precision", "workers", "decode, ours/theirs", "tokens/s", "first token, ours/theirs", "s", "hop ms")
    for column in (*columns, "worker RSS - weights MB", "coordinator MB", "start s"):
        shown.add_column(column, justify="right")
    for r in results:
        over = [rss - weights for rss, weights in zip(r.worker_rss_mb, r.worker_weights_mb, strict=True)]
        shown.add_row(
            *(r.precision, str(r.n_workers), f"{statistics.median(r.decode_ratio):.3f}"),
            *(f"{statistics.median(r.ours_tokens_per_s):.1f}", f"{statistics.median(r.ttft_ratio):.2f}"),
            *(f"{statistics.median(r.ours_ttft_s):.3f}", f"{r.hop_ms:.2f}", " ".join(f"{mb:.0f}" for mb in over)),
            *(f"{r.coordinator_rss_mb:.0f}", f"{r.start_s:.1f}"),
        )
    return shown


if __name__ == "__main__":
    main()
