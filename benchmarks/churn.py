"""A soak: real processes under load while workers, connections and the coordinator are broken at random.

    python -m benchmarks.churn [--seconds 300] [--streams 4] [--seed N] [--kills 20] [--spare-kills 3] [--json]

SmolLM2 in float32, a coordinator, two workers for each half of the model, reached through relays, and a spare.
Streams ask for answers that are known, from an unbroken run before: greedy and sampled ones, with and without
guessed tokens, private ones, and chats whose later turns find their beginning with the workers. Meanwhile processes
are killed (`kill -9`), banned, hang (SIGSTOP) and come back, connections are cut, held half-open and delayed. Two
figures are measured afterwards, without other load: the next token after a kill with a loaded replica, and with a
spare that loads from its cache.
Progress goes to standard error; the exit code is 1 if a token was wrong or a generation lost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import secrets
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from benchmarks.churn_figures import Figures, as_json, as_table
from benchmarks.churn_kills import kills_with_replica, kills_with_spare
from benchmarks.churn_soak import Soak
from benchmarks.replicated import ReplicatedCluster, added_model, relayed_workers
from demo.local_cluster import LocalCluster

HALVES = {"head": "0:15", "tail": "15:30"}
SPARE = ("--memory", "900MB", "--precision", "float32")
"""Too little for the whole model, or it would do all the work alone."""


def main() -> None:
    """Run it and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--seed", type=int, default=None, help="of the faults and of their times; else a new one")
    parser.add_argument("--kills", type=int, default=20, help="kills for the figure with a replica; 0: without it")
    parser.add_argument("--spare-kills", type=int, default=3, help="the same with a spare")
    parser.add_argument("--folder", type=Path, default=None, help="for state and logs, kept; else one that goes")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="brigade-churn-") as folder:
        figures = asyncio.run(measured(arguments, (arguments.folder or Path(folder)).resolve()))
    if arguments.json:
        json.dump(as_json(figures), sys.stdout, indent=1)
        print()
    else:
        Console(width=120).print(as_table(figures))
        for line in (*figures.lost, *figures.wrong):
            print(line)
    sys.exit(0 if figures.is_clean else 1)


async def measured(arguments: argparse.Namespace, folder: Path) -> Figures:
    """All figures, one after the other."""
    seed = secrets.randbits(32) if arguments.seed is None else arguments.seed
    figures = Figures(seed=seed, seconds=arguments.seconds, n_streams=arguments.streams)
    say(f"seed {seed}; starting a coordinator and {2 * len(HALVES)} workers")
    with LocalCluster(folder) as local:
        await asyncio.to_thread(local.start_coordinator)
        await asyncio.to_thread(added_model, local)
        cluster = ReplicatedCluster(local)
        async with relayed_workers(cluster, HALVES) as relays:
            cluster.start("spare", *SPARE)
            await cluster.made_whole()
            if arguments.seconds > 0:
                soak = Soak(cluster, relays, random.Random(seed), say)  # noqa: S311 - to be repeated, not secret
                await soak.run(figures, seconds=arguments.seconds, n_streams=arguments.streams)
            if arguments.kills > 0:
                await cluster.made_whole()
                figures.after_kill_with_replica = await kills_with_replica(cluster, arguments.kills, figures, say)
            cluster.kill(*(name for name in cluster.arguments if name in local.processes))
        if arguments.spare_kills > 0:
            figures.after_kill_with_spare = await kills_with_spare(local, arguments.spare_kills, figures, say)
    return figures


def say(line: str) -> None:
    """Tell people how far it is."""
    print(f"{datetime.now(UTC):%H:%M:%S} {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
