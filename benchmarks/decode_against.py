"""How fast one stream decodes beside another version of Brigade, two clusters of two workers each, in turns.

    python -m benchmarks.decode_against COMMIT [--turns 40] [--tokens 96] [--source FILE_OR_FOLDER] [--json FILE]

What the token path costs that was built since then: the programs of that commit come out of git into a temporary
folder, and run with this installation's libraries. Both clusters are there all the time, one of them idle; who goes
first changes with every turn. Run it on a machine that has nothing else to do.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
from rich.console import Console

from benchmarks.arrangement import MODEL, Arranged, Arrangement, arranged, coordinator_with
from benchmarks.measures import PLAIN, Bench, Scale
from benchmarks.targets import Outcome, Target, outcomes_json, outcomes_table
from demo.local_cluster import smollm2_gguf
from protocol.rest import RouteRequest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("client", "coordinator", "migrations", "protocol", "worker")
TARGET = Target(name="decode-cost", what="decoding, this tree / the other", bound=0.99)
UNSAID_TRUST = next(field.default for field in msgspec.structs.fields(RouteRequest) if field.name == "min_trust")
"""The very default, which isn't sent: another state of the same version may not know the field yet."""
N_WARM_UP = 2
"""Turns that don't count."""


def unpack(commit: str, folder: Path) -> Path:
    """The tree of a commit.

    Raises:
        SystemExit: there is no such commit.
    """
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=False)
    if archive.returncode != 0:
        raise SystemExit(f"git has no tree of {commit}: {archive.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder


async def tokens_per_s(ready: Arranged, prompt: Sequence[int], n_tokens: int) -> float:
    """Of one answer, after its first token."""
    answer = await ready.client.generate(
        MODEL,
        list(prompt),
        max_tokens=n_tokens,
        temperature=0.0,
        ignore_eos=True,
        min_trust=UNSAID_TRUST,
        **PLAIN,
    )
    return float(answer.tokens_per_s)


async def in_turns(bench: Bench, ours: Arranged, theirs: Arranged) -> Outcome:
    """One ratio a turn: the same prompt on both, one after the other."""
    scale = bench.scale
    ratios: list[float] = []
    speeds: dict[str, list[float]] = {"tokens/s": [], "the other's": []}
    for turn in range(-N_WARM_UP, scale.n_repeats):
        prompt = bench.prompt(scale.n_short_prompt)
        measured: dict[str, float] = {}
        both = [("tokens/s", ours), ("the other's", theirs)]
        for name, ready in both if turn % 2 else reversed(both):
            measured[name] = await tokens_per_s(ready, prompt, scale.n_tokens)
        if turn >= 0:
            ratios.append(measured["tokens/s"] / measured["the other's"])
            for name, speed in measured.items():
                speeds[name].append(speed)
    medians = {name: sorted(values)[len(values) // 2] for name, values in speeds.items()}
    return Outcome(target=TARGET, ratios=tuple(ratios), details=medians)


async def measured(bench: Bench, commit: str, folder: Path) -> Outcome:
    """Both clusters, in turns. Each has programs that nobody changes meanwhile; they are started side by side."""
    trees = {"theirs": unpack(commit, folder / "their-tree"), "ours": copied(folder / "our-tree")}
    async with AsyncExitStack() as stack:
        theirs, ours = await asyncio.gather(
            *(_started(stack, bench.source, folder / name, tree) for name, tree in trees.items())
        )
        return await in_turns(bench, ours, theirs)


def copied(folder: Path) -> Path:
    """This tree as it is now."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


async def _started(stack: AsyncExitStack, source: Path, folder: Path, tree: Path) -> Arranged:
    cluster = await asyncio.to_thread(stack.enter_context, coordinator_with(source, folder, tree=tree))
    return await stack.enter_async_context(arranged(cluster, Arrangement(precision="float32")))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, show, and say by the exit code whether the target is reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit")
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--source", type=Path, default=None, help="a GGUF file or a folder [SmolLM2-135M]")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    given = parser.parse_args(argv)
    scale = Scale(n_tokens=given.tokens, n_repeats=given.turns)
    bench = Bench(source=given.source or smollm2_gguf(), scale=scale)
    with tempfile.TemporaryDirectory(prefix="brigade-against-") as folder:
        outcome = asyncio.run(measured(bench, given.commit, Path(folder)))
    Console().print(outcomes_table([outcome], f"Decoding beside {given.commit}"))
    if given.json is not None:
        given.json.write_text(json.dumps(outcomes_json([outcome]), indent=2) + "\n")
    return 0 if outcome.is_reached else 1


if __name__ == "__main__":
    raise SystemExit(main())
